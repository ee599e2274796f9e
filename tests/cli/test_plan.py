"""`ktops plan`: one machine in full, several side by side, and what it refuses."""

from __future__ import annotations

import dataclasses

import jsonschema
import numpy as np
import pytest
from schemas import schema

import ktops.planning.machines.live as live
from ktops.hub.catalogue import load_catalogue
from ktops.planning.model_plan import largest_fitting_model, plan_model
from ktops.settings import Settings
from ktops_engine.demo import demo_path
from ktops_engine.expert_counts import add_counts, counts_path
from ktops_engine.gguf import open_gguf
from ktops_engine.machine import GpuFacts, MachineFacts
from ktops_engine.text import text

GIB = 1 << 30
SMALL = MachineFacts(
    tuple(range(8)), 24 * GIB, 22 * GIB, read_bandwidth=40e9, bandwidth_is_measured=True,
    isa="avx2", name="Test CPU",
)  # fmt: skip


@pytest.fixture(autouse=True)
def this_machine(monkeypatch):
    monkeypatch.setattr(live, "this_machine", lambda: SMALL)


@pytest.fixture
def settings(tmp_path):
    return Settings(models_dir=tmp_path / "models")


def document(ran):
    jsonschema.validate(ran.document, schema("plan"))
    return ran.document


def test_a_model_that_does_not_fit_ends_with_status_4_and_what_would_fit(ktops):
    ran = ktops("plan", "r1-q4km")
    assert ran.status == 4
    assert "RAM: 22 GiB there, 382.3 GiB needed: 360.3 GiB more" in ran.stdout
    assert "v2-lite-q4km (9.6 GiB)" in ran.stdout
    assert "tok/s" not in ran.stdout


def test_the_articles_server_is_shown_in_bytes_with_its_limit(ktops):
    ran = ktops("plan", "r1-q4km", "--machine", "article")
    assert ran.status == 0
    for words in ("376.7 GiB of weights", "366.9 GiB"):
        assert words in ran.stdout
    decode = next(line for line in ran.stdout.splitlines() if line.startswith("decode"))
    assert decode.endswith("  RAM bandwidth")
    assert "measured" not in ran.stdout


@pytest.mark.parametrize("machine", ["9355,768GiB", "article", "h100-host"])
def test_where_the_server_does_what_is_planned_nothing_is_said_about_today(ktops, machine):
    ran = ktops("plan", "r1-q4km", "--machine", machine)
    assert ran.status == 0
    assert "Today" not in ran.stdout
    assert "Note" not in ran.stdout


def test_a_gpu_that_is_a_little_too_small_holds_some_layers_and_that_is_said(ktops):
    machine = "9355,768GiB,vram=10GiB"
    ran = ktops("plan", "r1-q4km", "--machine", machine)
    assert "Today" not in ran.stdout
    assert (
        "Note     the GPU holds 53 of 61 layers, the CPU computes the others: 9.8 GiB of its "
        "memory can be used, 11.5 GiB would hold all"
    ) in ran.stdout
    assert ran.stdout.count("11.5 GiB") == 1
    both = ktops("plan", "r1-q4km", "--machine", machine, "--machine", "article")
    assert f"{machine}: the GPU holds 53 of 61 layers" in both.stdout
    plan = document(ktops("plan", "r1-q4km", "--machine", machine, "--json"))["plans"][0]
    assert (plan["placement"]["gpu_layers"], plan["placement"]["gpu_head"]) == (53, False)


def test_a_gpu_without_room_for_a_layer_is_not_used_and_that_is_said(ktops):
    ran = ktops("plan", "r1-q4km", "--machine", "9355,768GiB,vram=2GiB")
    assert "Note     the GPU is not used: 2.0 GiB of its memory can be used, 2.1 GiB " in ran.stdout
    assert "for one layer, 11.5 GiB for all that every token uses" in ran.stdout


def test_of_several_gpus_those_that_stay_empty_are_named_and_the_others_are_used(ktops):
    ran = ktops("plan", "r1-q4km", "--machine", "2x9654,1536GiB,2x4090")
    assert "Note     1 of 2 GPUs hold nothing: --gpu-memory all puts routed experts" in ran.stdout
    assert "Today" not in ran.stdout
    plan = document(ktops("plan", "r1-q4km", "--machine", "h20x8", "--json"))["plans"][0]
    assert plan["served"] is None
    layers = plan["placement"]["expert_layers_by_gpu"]
    assert len(layers) == len(plan["placement"]["devices"]) - 1 > 3
    assert sum(layers) == plan["placement"]["gpu_expert_layers"] == 58
    ran = ktops("plan", "r1-q4km", "--machine", "h20x8")
    row = next(line for line in ran.stdout.splitlines() if "layers of routed experts" in line)
    assert row.split()[4:] == [*map(str, layers), "-"]


def test_one_command_compares_the_machines_of_the_article(ktops):
    ran = ktops("plan", "r1-q4km", "--compare")
    assert ran.status == 0
    head = next(line for line in ran.stdout.splitlines() if "article" in line)
    assert head.split() == ["article", "h100-host", "h20x8", "laptop", "this"]
    limits = next(line for line in ran.stdout.splitlines() if line.startswith("limited by"))
    for limit in ("RAM bandwidth", "VRAM bandwidth", "RAM capacity"):
        assert limit in limits
    assert "laptop: RAM: 31.4 GiB there" in ran.stdout


def test_the_comparison_as_a_document_is_exact(ktops):
    plans = {
        plan["machine"]["label"]: plan
        for plan in document(ktops("plan", "r1-q4km", "--compare", "--json"))["plans"]
    }
    assert [plans[name]["fits"] for name in plans] == [True, True, True, False, False]
    for plan in plans.values():
        weights = sum(device["weights_bytes"] for device in plan["placement"]["devices"])
        assert weights == pytest.approx(376.65 * GIB, rel=0.0001)
    for name in ("article", "h100-host"):
        _, gpu = plans[name]["placement"]["devices"]
        assert 12e9 < gpu["total_bytes"] < 14e9
        assert plans[name]["served"] is None
    assert plans["h20x8"]["served"] is None
    assert plans["laptop"]["served"] is plans["this"]["served"] is None
    assert [plans[name]["placement"]["gpu_head"] for name in plans] == [True] * 3 + [False] * 2
    assert plans["laptop"]["placement"]["gpu_layers"] == 39


def test_machines_are_compared_in_the_order_they_are_named(ktops):
    ran = ktops("plan", "r1-q4km", "--machine", "this", "--machine", "2x9654,1536GiB", "-q")
    assert ran.status == 0
    assert [line.split("\t")[0] for line in ran.stdout.splitlines()] == ["this", "2x9654,1536GiB"]


def test_a_model_that_is_here_is_planned_from_its_files(ktops):
    model = document(ktops("plan", "demo", "--json"))["model"]
    assert model["source"] == "files"
    assert model["weights_bytes"] < load_catalogue()["demo"].needs.disk_bytes


def test_gpu_memory_is_filled_or_capped_as_wished(ktops):
    def vram(*args):
        ran = ktops("plan", "r1-q4km", "--machine", "h100-host", "--json", *args)
        return document(ran)["plans"][0]["placement"]["devices"][1]["total_bytes"]

    assert vram() < 14e9
    assert 33 * GIB < vram("--gpu-memory", "40GiB") <= 40 * GIB
    assert vram("--gpu-memory", "all") > 72 * GIB
    assert 18 * GIB < vram("--gpu-experts", "300") < 20 * GIB
    ran = ktops("plan", "r1-q4km", "--machine", "h100-host", "--json", "--gpu-memory", "0.5GiB")
    assert len(document(ran)["plans"][0]["placement"]["devices"]) == 1


def test_copies_of_the_most_used_experts_are_planned_by_what_was_counted(ktops):
    used = np.full((5, 32), 1000, np.int32)
    used[:, 3] = 969_000
    wish = ("plan", "demo", "--machine", "h100-host", "--gpu-experts", "7")
    add_counts(counts_path(open_gguf(demo_path())), used)
    ran = ktops(*wish)
    assert "copies of most used experts" in ran.stdout
    assert "Experts  copies of the 7 most used ones in VRAM: 97 % of reads" in ran.stdout
    placement = document(ktops(*wish, "--json"))["plans"][0]["placement"]
    assert (placement["gpu_experts"], placement["hot_experts"]) == (0, 7)
    assert 0.9 < placement["hot_share"] < 1
    assert placement["devices"][1]["parts"]["copies_of_most_used_experts"] > 0


def test_an_unknown_bandwidth_is_said_and_not_guessed(ktops):
    ran = ktops("plan", "r1-q4km", "--machine", "cores=32,ram=512GiB")
    assert ran.status == 0
    assert "nothing tells this machine's RAM bandwidth" in ran.stdout
    plan = document(ktops("plan", "r1-q4km", "--machine", "cores=32,ram=512GiB", "--json"))
    assert plan["plans"][0]["prediction"] is None
    assert plan["plans"][0]["unknown_rates"] == ["RAM bandwidth"]


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["r2-q4km"], "unknown-model", "r1-q4km"),
        (["--machine", "8640Y+,1TiB"], "unknown-machine", "Xeon 8460Y+"),
        (["--machine", "artikle"], "unknown-machine", "article"),
        (["--machine", "zzz"], "unknown-machine", "zzz"),
        (["--machine", "8460Y+"], "invalid-machine", "no amount of RAM"),
        (["--machine", "64GiB"], "invalid-machine", "no processor"),
        (["--machine", "cores=0,64GiB"], "invalid-machine", "cores=0"),
        (["--machine", "cores=8,ram=64"], "invalid-machine", "ram=64"),
        (["--machine", "cores=8,64GiB,bandwidth=fast"], "invalid-machine", "bandwidth=fast"),
        (["--machine", "cores=8,64GiB,speed=3"], "invalid-machine", "speed"),
        (["--machine", "cores=8,64GiB,isa=neon"], "invalid-machine", "neon"),
        (["--machine", "cores=8,64GiB,pcie=25GB/s"], "invalid-machine", "vram="),
        (["--machine", "999xH20,8460Y+,64GiB"], "invalid-machine", "64"),
        (["--machine", "8460Y+,9654,64GiB"], "invalid-machine", "9654"),
        (["--gpu-memory", "much"], "invalid-setting", "--gpu-memory is 'much'"),
        (["--gpu-experts", "some"], "invalid-setting", "--gpu-experts is 'some'"),
        (["--ctx-size", "1000000"], "invalid-ctx-size", "163840"),
        (["--cpu-infer", "0"], "invalid-setting", "cpu-infer"),
    ],
)
def test_what_cannot_be_meant_is_a_usage_error(ktops, args, code, words):
    ran = ktops("plan", *args, "--json")
    assert ran.status == 2
    assert ran.document["error"]["code"] == code
    assert words in ran.document["error"]["message"]
    assert ran.document["error"]["hint"]


def test_settings_for_this_machine_do_not_count_for_another(ktops, monkeypatch):
    monkeypatch.setenv("KTOPS_CPU_INFER", "2")
    monkeypatch.setenv("KTOPS_GPU_MEMORY", "1GiB")
    monkeypatch.setenv("KTOPS_GPU_EXPERTS", "3")
    ran = ktops("plan", "r1-q4km", "--machine", "this", "--machine", "article", "--json")
    this, article = (plan["placement"] for plan in document(ran)["plans"])
    assert (this["threads"], article["threads"]) == (2, 80)
    assert (len(article["devices"]), article["gpu_experts"]) == (2, 0)


def test_the_plan_is_said_in_chinese(ktops):
    ran = ktops("plan", "r1-q4km", "--machine", "laptop", "--lang", "zh")
    assert ran.status == 4
    for words in ("路由专家", "放不下", "还差 34", "GPU 放下了 61 层中的 39 层"):
        assert words in ran.stdout
    ran = ktops("plan", "r1-q4km", "--machine", "article", "--lang", "zh")
    line = next(line for line in ran.stdout.splitlines() if line.startswith("解码"))
    assert line.endswith("内存带宽")


def test_plan_model_never_raises_for_what_does_not_fit(settings):
    plan = plan_model("r1-q4km", settings)
    assert not plan.fits
    assert plan.planned is plan.served
    assert plan.planned.lack.missing_bytes > 300 * GIB
    assert (plan.largest_ctx, plan.planned.decode_tokens_per_s) == (0, None)


L40S = GpuFacts("L40S", 48 * GIB, 48 * GIB, 864e9, 25.6e9, 362e12)
HOST = MachineFacts(
    tuple(range(80)), 375 * GIB, 375 * GIB, (L40S,), read_bandwidth=600e9, isa="amx"
)


def test_a_machine_with_a_good_gpu_is_served_as_planned(settings):
    plan = plan_model("r1-q4km", settings, HOST)
    assert plan.fits
    assert plan.served is plan.planned
    assert plan.planned.placement.is_hybrid
    assert plan.differences == ()


def test_plan_model_tells_today_from_what_the_gpu_could_bring(settings):
    blocked = dataclasses.replace(HOST, gpu_obstacle=text("torch here was built without CUDA"))
    plan = plan_model("r1-q4km", settings, blocked)
    assert plan.fits
    assert not plan.served.fits
    assert plan.differences == ("the GPU is not used: torch here was built without CUDA",)
    assert plan.planned.decode_tokens_per_s is not None
    small = dataclasses.replace(blocked, gpus=(dataclasses.replace(L40S, free_bytes=8 * GIB),))
    (lack,) = plan_model("r1-q4km", settings, small).changes
    assert lack.startswith("VRAM: 7.8 GiB there, 11.5 GiB needed")


def test_the_model_named_instead_is_the_largest_that_this_version_can_serve(settings):
    assert largest_fitting_model(settings, SMALL)[0] == "v2-lite-q4km"
    assert largest_fitting_model(settings, SMALL, below_bytes=10_000_000_000)[0] == "demo"
    tiny = MachineFacts((0,), GIB // 2, GIB // 2)
    assert largest_fitting_model(settings, tiny) is None
    assert plan_model("v2-lite-q4km", settings, tiny).changes[0].endswith("more")


def test_less_context_is_proposed_where_that_is_enough(settings, monkeypatch):
    host = MachineFacts((0, 1), 12 * GIB, 12 * GIB)
    asked = Settings(models_dir=settings.models_dir, ctx_size=163840)
    plan = plan_model("v2-lite-q4km", asked, host)
    assert not plan.fits
    assert any(f"--ctx-size {plan.largest_ctx}" in change for change in plan.changes)
    assert plan_model(
        "v2-lite-q4km", Settings(models_dir=settings.models_dir, ctx_size=plan.largest_ctx), host
    ).fits
