"""Disks and the port: one fault at a time on the healthy server."""

from __future__ import annotations

from dataclasses import replace

import pytest

from .conftest import GIB, disk


def test_what_is_downloaded_already_needs_no_room(ask, server, r1):
    server["disks"]["/"] = disk("/", total=900 * GIB, free=50 * GIB, kind="ext4")
    partly = replace(r1, present_bytes=380_000_000_000)
    result = ask(server, partly, "disk.space")
    assert result.status == "ok"
    assert result.expected == "needs 22.7 GiB more (353.9 GiB is there)"
    assert ask(server, replace(r1, present_bytes=r1.weights_bytes), "disk.space").status == "ok"


def test_a_folder_that_may_not_be_written_is_a_failure(ask, server, r1):
    server["disks"] = {"/": disk("/", total=900 * GIB, free=600 * GIB, kind="ext4", writable=False)}
    assert ask(server, r1, "disk.space").detail == "this user may not write there"
    assert ask(server, r1, "disk.cache").value == "/ may not be written"


@pytest.mark.parametrize(("kind", "status"), [("tmpfs", "warn"), ("nfs4", "warn"), ("xfs", "ok")])
def test_what_the_models_folder_is_made_of_matters(ask, server, r1, kind, status):
    server["disks"]["/"] = disk("/", total=900 * GIB, free=600 * GIB, kind=kind)
    assert ask(server, r1, "disk.type").status == status


@pytest.mark.parametrize(
    ("state", "fix"),
    [
        (
            {"reason": "Address already in use", "pid": 4242, "process": "python3"},
            "kill 4242   # or: ktops serve r1-q4km --port 10004",
        ),
        ({"reason": "Address already in use"}, "ktops serve r1-q4km --port 10004"),
        ({"reason": "Cannot assign address"}, "ktops serve r1-q4km --host 127.0.0.1"),
    ],
)
def test_a_port_in_use_names_its_holder_and_the_next_free_one(ask, server, r1, state, fix):
    taken = {"free": False, "reason": "Address already in use"}
    server["ports"] = {"127.0.0.1:10002": {"free": False, **state}, "127.0.0.1:10003": taken}
    result = ask(server, r1, "net.port")
    assert (result.status, result.fix) == ("fail", fix)


def test_weights_that_are_not_there_are_no_question_and_whole_ones_are_counted(ask, server, r1):
    assert ask(server, r1, "model.files").value == "r1-q4km is not downloaded"
    server["probes"]["model /m/a.gguf"] = {
        "facts": {"num_shards": 9, "total_bytes": 404_425_000_000, "architecture": "deepseek2"}
    }
    result = ask(server, replace(r1, weights="/m/a.gguf"), "model.files")
    assert (result.status, result.value) == ("ok", "9 shards, 376.7 GiB of tensors, whole")


@pytest.mark.parametrize(
    ("probe", "detail", "fix"),
    [
        (
            {"facts": {"error": "shard 3 of 9 is missing", "hint": "hf download x\nor y"}},
            "shard 3 of 9 is missing",
            "hf download x",
        ),
        (
            {"error": "ended by SIGBUS"},
            "ended by SIGBUS",
            "ktops models   # shows what is here, and how the rest is fetched",
        ),
    ],
)
def test_damaged_weights_are_named_with_the_engines_own_advice(ask, server, r1, probe, detail, fix):
    server["probes"]["model /m/a.gguf"] = probe
    result = ask(server, replace(r1, weights="/m/a.gguf"), "model.files")
    assert (result.status, result.detail, result.fix) == ("fail", detail, fix)
