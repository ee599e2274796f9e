"""`ktops eval`: figures of the demo, comparisons, and everything it refuses."""

from __future__ import annotations

import math
import signal
from pathlib import Path

import pytest

from ktops.evaluation import progress, session
from ktops_engine.evaluate.run import EvalProgress
from ktops_engine.gguf import GgufModel, open_gguf
from ktops_engine.models.weights import Weights
from ktops_engine.native.cache import BuildInfo
from ktops_engine.node_memory import NodeShare

TEXT = "Who are you? I am ktops.\n你好，世界！12 + 30 = 42.\n" * 3
QUICK = ("--window", "32", "--cpu-infer", "1")


@pytest.fixture(autouse=True)
def built(native_build: BuildInfo, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels are built, and everybody's are the same."""
    monkeypatch.setenv("KTOPS_ISA", "avx512vnni")


@pytest.fixture
def text(work_dir: Path) -> str:
    (work_dir / "text.txt").write_text(TEXT, encoding="utf-8")
    return "text.txt"


@pytest.fixture
def reference(ktops, text) -> str:
    ran = ktops("eval", "demo", text, *QUICK, "--save-reference", "run.ktops-eval", "-q")
    assert ran.status == 0, ran.stderr
    return "run.ktops-eval"


def test_a_text_gets_a_perplexity_with_its_error(ktops, text):
    ran = ktops("eval", "demo", text, *QUICK)
    head, row = ran.stdout.splitlines()
    assert head.split() == ["measure", "value"]
    assert row.startswith("perplexity")
    assert " +- " in row
    assert "text.txt: " in ran.stderr
    assert "tokens in windows of 32" in ran.stderr
    assert "tok/s" in ran.stderr


def test_quiet_prints_the_perplexity_alone_for_the_model_that_is_here(ktops, text):
    ran = ktops("eval", text, *QUICK, "-q")
    assert float(ran.stdout) > 1
    assert ran.stderr == ""


def test_the_document_says_what_was_computed_and_how(ktops, text):
    ran = ktops("eval", "demo", text, *QUICK, "--max-tokens", "50", "--json")
    document = ran.document  # the only thing on stdout
    assert (document["tokens"], document["window"], document["windows"]) == (50, 32, 2)
    assert document["isa"] == "avx512vnni"
    assert document["gpu_layers"] == 0
    assert document["perplexity"] == pytest.approx(math.exp(document["negative_log_likelihood"]))
    assert document["reference"] is None
    assert document["saved"] is None
    assert "  eval  " in ran.stderr


def test_the_same_run_again_differs_in_nothing_and_takes_its_window_from_the_reference(
    ktops, text, reference
):
    document = ktops(
        "eval", "demo", text, "--cpu-infer", "1", "--reference", reference, "--json"
    ).document
    found = document["reference"]
    assert document["window"] == 32
    assert found["model"] == "demo"
    assert found["kept_tokens"] == 512
    assert found["kl_divergence"]["max"] == 0
    assert found["perplexity_difference"] == 0
    assert found["same_best"] == 1


def test_the_headers_of_the_files_are_opened_once(ktops, text, monkeypatch):
    opened = []

    def count(path: Path) -> GgufModel:
        opened.append(path)
        return open_gguf(path)

    monkeypatch.setattr("ktops_engine.source.open_gguf", count)
    assert ktops("eval", "demo", text, *QUICK).status == 0
    assert len(opened) == 1


def test_other_kernels_differ_a_little(ktops, text, reference, monkeypatch):
    monkeypatch.setenv("KTOPS_ISA", "scalar")
    ran = ktops("eval", "demo", text, "--reference", reference, "--json")
    found = ran.document["reference"]
    assert found["isa"] == "avx512vnni"
    assert 0 < found["kl_divergence"]["median"] < 1e-6  # the mean: a close choice of experts
    assert found["same_best"] > 0.9


@pytest.mark.parametrize("mode", ["auto", "on", "off"])
def test_weights_may_be_shared_out_over_numa_nodes(ktops, text, monkeypatch, mode):
    def thread_nodes(wish, cpus, **library) -> None:
        assert wish == mode

    shares = (NodeShare(0, 1 << 30, None),)
    monkeypatch.setattr("ktops_engine.loader.thread_nodes", thread_nodes)
    monkeypatch.setattr(Weights, "node_shares", lambda weights, pool: shares)
    ran = ktops("eval", "demo", text, *QUICK, "--numa", mode)
    assert ran.status == 0, ran.stderr
    assert "  node 0  1 GiB wanted" in ran.stderr


def test_numa_is_auto_on_or_off(ktops, text):
    refused = ktops("eval", "demo", text, "--numa", "1")
    assert refused.status == 2
    assert "--numa" in refused.stderr


def test_the_table_of_a_comparison_names_every_measure(ktops, text, reference):
    out = ktops("eval", "demo", text, "--reference", reference).stdout
    for measure in ("of the reference", "difference", "KL divergence, 99 %", "same likeliest"):
        assert f"\n{measure}" in out


def test_a_reference_says_in_the_document_where_it_is(ktops, text):
    ran = ktops("eval", "demo", text, *QUICK, "--save-reference", "r", "--json")
    assert ran.document["saved"] == "r"
    assert sorted(path.name for path in Path().iterdir()) == ["r", "text.txt"]


def test_random_weights_of_some_layers_can_be_compared_too(ktops, text):
    dummy = ("--load-format", "dummy", "--num-hidden-layers", "2")
    assert ktops("eval", "demo", text, *QUICK, *dummy, "--save-reference", "r").status == 0
    found = ktops("eval", "demo", text, *dummy, "--reference", "r", "--json").document["reference"]
    assert found["model"] == "demo --load-format dummy --num-hidden-layers 2"
    assert found["kl_divergence"]["mean"] == pytest.approx(0, abs=1e-12)


def test_it_speaks_chinese(ktops, text, reference):
    out = ktops("--lang", "zh", "eval", "demo", text, "--reference", reference).stdout
    assert "困惑度" in out
    assert "KL 散度" in out


@pytest.mark.parametrize(
    ("args", "status", "said"),
    [
        ([], 2, "a text to evaluate is missing"),
        (["demo", "absent.txt"], 2, "No such file"),
        (["demo", "."], 2, "is no text to evaluate"),
        (["demo", "binary"], 2, "is not UTF-8"),
        (["demo", "empty"], 2, "no token to predict"),
        (["demo", "text.txt", "--window", "1"], 2, "2 to 4096 tokens"),
        (["demo", "text.txt", "--window", "5000"], 2, "2 to 4096 tokens"),
        (["demo", "text.txt", "--max-tokens", "0"], 2, "at least one token"),
        (["demo", "text.txt", "--num-hidden-layers", "2"], 2, "--load-format dummy alone"),
        (["r1-q4k", "text.txt"], 2, "r1-q4k"),
        (["r1-q4km", "text.txt"], 1, "is not downloaded"),
        (["demo", "text.txt", "--reference", "absent"], 1, "cannot be used as a reference"),
        (["demo", "text.txt", "--reference", "text.txt"], 1, "no reference of ktops eval"),
        (["demo", "text.txt", "--save-reference", "text.txt"], 1, "exists already"),
        (["demo", "text.txt", "--save-reference", "no/r"], 1, "cannot be written"),
        (["demo", "text.txt", "--save-reference", "."], 1, "exists already"),
        (["--gguf-path", "absent.gguf", "text.txt"], 1, "does not exist"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_before_loading(ktops, text, args, status, said):
    Path("binary").write_bytes(b"\x00\xff\xfe")
    Path("empty").write_bytes(b"")
    ran = ktops("eval", *args)
    assert ran.status == status
    assert said in ran.stderr
    assert "\n  Fix: " in ran.stderr
    assert "  load  " not in ran.stderr
    assert not list(Path().glob(".*partial"))


@pytest.mark.parametrize(
    ("args", "status", "said"),
    [
        (["other.txt"], 1, "is of another text than other.txt"),
        (["text.txt", "--window", "64"], 2, "--window 64: run.ktops-eval was written with 32"),
        (["text.txt", "--max-tokens", "9"], 2, "--max-tokens 9: run.ktops-eval was written with"),
    ],
)
def test_a_reference_of_another_run_is_refused(ktops, reference, args, status, said):
    Path("other.txt").write_text(TEXT + "more", encoding="utf-8")
    ran = ktops("eval", "demo", *args, "--reference", reference)
    assert ran.status == status
    assert said in ran.stderr
    assert "  load  " not in ran.stderr


def test_a_reference_of_another_tokenizer_is_refused(ktops, text, reference, tmp_path):
    from tiny_gguf import V3, write_tiny_gguf

    tiny = write_tiny_gguf(tmp_path, V3)
    ran = ktops("eval", text, "--gguf-path", str(tiny.path), "--reference", reference)
    assert ran.status == 1
    assert "a model with another tokenizer, demo" in ran.stderr


def test_a_spoilt_reference_is_refused(ktops, text, reference):
    data = bytearray(Path(reference).read_bytes())
    Path("short").write_bytes(data[:-1])
    data[5000] ^= 1
    Path("changed").write_bytes(data)
    for name, said in (("short", "its header asks for"), ("changed", "have changed since")):
        ran = ktops("eval", "demo", text, "--reference", name)
        assert ran.status == 1
        assert said in ran.stderr


def test_a_reference_is_replaced_only_by_force(ktops, text, reference):
    before = Path(reference).read_bytes()
    again = ("eval", "demo", text, "--window", "16", "--save-reference", reference)
    assert ktops(*again).status == 1
    assert Path(reference).read_bytes() == before
    assert ktops(*again, "--force").status == 0
    assert Path(reference).read_bytes() != before


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_leaves_no_half_file(ktops, text, monkeypatch, number, status):
    monkeypatch.setattr(
        session.EvalView, "update", lambda view, progress: signal.raise_signal(number)
    )
    ran = ktops("eval", "demo", text, *QUICK, "--save-reference", "r")
    assert ran.status == status
    assert [path.name for path in Path().iterdir()] == ["text.txt"]


def test_a_hint_repeats_the_whole_command(ktops, text, monkeypatch):
    ran = ktops("eval", "r1-q4km", text, *QUICK, "--reference", "r")
    assert ran.status == 1
    ran = ktops("eval", "r1-q4km", text, *QUICK)
    assert "ktops eval r1-q4km text.txt --window 32 --cpu-infer 1 --yes" in ran.stderr


def test_lines_of_progress_come_now_and_then_with_rate_and_time_left(capsys):
    from ktops.output import Output

    times = iter([0.0, 0.0, 1.0, 11.0, 12.0, 22.0, 22.0])
    with progress.EvalView(Output(), clock=lambda: next(times)) as view:
        for done in (100, 1000, 1100, 2000):
            view.update(EvalProgress(done, 4000, 2.0))
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "  eval    25 %  1000 of 4000 tokens  91 tok/s  0:33 left  perplexity so far 7.389",
        "  eval    50 %  2000 of 4000 tokens  91 tok/s  0:22 left  perplexity so far 7.389",
        "  eval    2000 tokens in 22.0 s, 91 tok/s",
    ]
