"""`ktops bench kernels`: figures of a small layer, and what it refuses."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ktops_engine import machine
from ktops_engine.native.cache import BuildInfo
from ktops_engine.native.load import load_native

QUICK = ("bench", "kernels", "--shape", "demo", "--threads", "1")


@pytest.fixture(autouse=True)
def quick(native_build: BuildInfo, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels are built, a figure takes a moment, and KTOPS_ISA is put back."""
    monkeypatch.setattr("ktops.bench.kernels.SECONDS_PER_FIGURE", 0.01)
    monkeypatch.setenv("KTOPS_ISA", "")
    monkeypatch.delenv("KTOPS_ISA")


def test_a_table_has_a_line_for_each_number_of_tokens(ktops):
    ran = ktops(*QUICK, "--tokens", "1,3")
    head, *rows = ran.stdout.splitlines()
    assert head.split("  ")[0] == "tokens"
    assert "GB/s  read GB/s  share  TFLOP/s  rel. L2" in head
    assert [row.split()[0] for row in rows] == ["1", "3"]
    assert "8 experts, 2 a token, Q4_K, Q6_K, one thread" in ran.stderr


def test_the_document_holds_rates_and_a_small_error(ktops):
    document = ktops(*QUICK, "--tokens", "1,40", "--json").document
    assert document["shape"]["num_experts"] == 8
    assert document["threads"] == 1
    for result in document["results"]:
        assert result["touched_bytes_per_s"] > 0
        assert result["share"] is None  # caches hold it
        assert result["relative_l2"] < 5e-3


def test_quiet_prints_tokens_and_gigabytes_a_second(ktops):
    tokens, rate = ktops(*QUICK, "--tokens", "2", "-q").stdout.split("\t")
    assert tokens == "2"
    assert float(rate) > 0


def test_a_shape_of_ones_own_gets_blocks_that_divide_its_rows(ktops):
    ran = ktops("bench", "kernels", "--shape", "96x256x4x2", "--tokens", "1", "--json")
    assert ran.document["shape"]["gate_type"] == "Q5_0"
    assert ran.document["shape"]["down_type"] == "Q6_K"


def test_the_instruction_set_can_be_chosen(ktops):
    document = ktops(*QUICK, "--tokens", "1", "--isa", "scalar", "--json").document
    assert document["isa"] == "scalar"


def test_rows_belong_to_no_node_on_a_machine_with_one(ktops):
    for mode in ("auto", "on", "off"):
        document = ktops(*QUICK, "--tokens", "1", "--numa", mode, "--json").document
        assert document["nodes"] == []


def test_numa_is_refused_where_the_library_was_built_without_it(ktops, native_build, monkeypatch):
    without = replace(native_build, numa=False)
    monkeypatch.setattr("ktops.bench.kernels.build_native", lambda **options: without)
    monkeypatch.setattr("ktops_engine.nodes.nodes_of_cpus", lambda cpus, *roots: (0, 1))
    refused = ktops(*QUICK, "--numa", "on")
    assert refused.status == 2
    assert "Fix: ktops build --numa on --force" in refused.stderr


def test_an_instruction_set_that_this_cpu_lacks_is_refused(ktops, native_build, monkeypatch):
    native = load_native(native_build)
    monkeypatch.setattr("ktops.bench.kernels.load_native", lambda info: native)
    asked = "scalar" if native.isa != "scalar" else "avx2"
    ran = ktops(*QUICK, "--isa", asked)
    assert ran.status == 2
    assert f"--isa {native.isa}" in ran.stderr


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--shape", "r9"], "r1, v2-lite, demo"),
        (["--shape", "100x256x8x2"], "100 is no multiple of 32"),
        (["--shape", "256x256x8x9"], "9 of 8 experts"),
        (["--tokens", "1,,2"], "with commas between"),
        (["--tokens", "0"], "with commas between"),
        (["--threads", "100000"], "this process may use 1 to"),
        (["--threads", "0"], "this process may use 1 to"),
        (["--shape", "demo", "--experts", "1"], "a token takes 2"),
    ],
)
def test_a_wrong_request_is_refused_with_what_would_be_right(ktops, args, said):
    ran = ktops("bench", "kernels", *args)
    assert ran.status == 2
    assert said in ran.stderr
    assert "ktops bench kernels" in ran.stderr


def test_a_layer_that_does_not_fit_is_refused_with_the_numbers(ktops, monkeypatch):
    small = replace(machine.detect_machine(), available_ram_bytes=4 << 30)
    monkeypatch.setattr("ktops_engine.machine.detect_machine", lambda: small)
    ran = ktops("bench", "kernels")
    assert ran.status == 4
    assert "256 experts of" in ran.stderr
    assert "4 GiB are free" in ran.stderr
    fitting = int(ran.stderr.split("--experts ")[1].split()[0])
    assert 100 < fitting < 256


def test_a_machine_without_room_for_the_smallest_layer_is_sent_to_the_demo(ktops, monkeypatch):
    tiny = replace(machine.detect_machine(), available_ram_bytes=600 << 20)
    monkeypatch.setattr("ktops_engine.machine.detect_machine", lambda: tiny)
    ran = ktops("bench", "kernels")
    assert ran.status == 4
    assert "--shape demo" in ran.stderr
