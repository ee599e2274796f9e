"""Perplexity and divergence: against direct float64 computations, and on the demo."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers_oracle import Oracle

from ktops_engine.config import EngineConfig
from ktops_engine.demo import demo_path
from ktops_engine.errors import KtopsError
from ktops_engine.evaluate.reference import ReferenceHeader, ReferenceReader, kept_tokens
from ktops_engine.evaluate.reference_writer import ReferenceWriter
from ktops_engine.evaluate.run import EvalProgress, Evaluation, evaluate, perplexity_of
from ktops_engine.evaluate.scores import compare, make_records, target_log_probs
from ktops_engine.evaluate.windows import (
    DEFAULT_WINDOW,
    MAX_TEXT_BYTES,
    TextFile,
    TokenWindows,
    choose_window,
    cut_text,
    read_text,
)
from ktops_engine.loader import LoadedModel, load_model

VOCAB = 700  # more than a reference keeps
TEXT = "ktops serve r1-q4km\n你好，世界！ The model is loaded, and 12 + 30 = 42.\n" * 2


@dataclass
class FakeRunner:
    """Logits drawn from a seed for each token and position, and from `noise`, if any."""

    vocab: int
    noise: float
    steps: list[tuple[int, int]] = field(default_factory=list)

    def logits(self, batch) -> torch.Tensor:
        (item,) = batch.items
        self.steps.append((item.start, item.num_tokens))
        rows = []
        for position in range(item.start, item.start + item.num_tokens):
            rng = np.random.default_rng([position, item.request.prompt_token_ids[position]])
            drawn = 3 * rng.standard_normal(self.vocab)
            rows.append(drawn + self.noise * rng.standard_normal(self.vocab))
        return torch.tensor(np.array(rows), dtype=torch.float32)


def fake_model(vocab: int = VOCAB, noise: float = 0.0, chunk: int = 512) -> SimpleNamespace:
    runner = FakeRunner(vocab, noise)
    return SimpleNamespace(
        placement=SimpleNamespace(num_blocks=4, prefill_chunk=chunk),
        config=SimpleNamespace(vocab_size=vocab),
        new_runner=lambda sampler: runner,
        runner=runner,
    )


def tokens(count: int = 50, vocab: int = VOCAB, size: int = 16, bos: int | None = 0):
    ids = np.random.default_rng(1).integers(1, vocab, size=count + 1).tolist()
    return TokenWindows(ids if bos is None else [bos, *ids[1:]], bos, size)


def saved(path: Path, loaded, windows: TokenWindows) -> Evaluation:
    vocab = loaded.config.vocab_size
    header = ReferenceHeader(
        "m", "scalar", "0" * 64, windows.sha256, windows.size, vocab, windows.num_targets,
        kept_tokens(vocab),
    )  # fmt: skip
    with ReferenceWriter(path, 0) as writer:
        writer.begin(header)
        done = evaluate(loaded, windows, writer=writer)
        writer.commit()
    return done


def compared(path: Path, loaded, windows: TokenWindows) -> Evaluation:
    with ReferenceReader(path) as reader:
        return evaluate(loaded, windows, reference=reader)


def all_logits(loaded, windows: TokenWindows) -> tuple[torch.Tensor, list[int]]:
    """What the runner gives for all windows, in float64, and the tokens that came."""
    from ktops_engine.evaluate.run import _steps

    logits, targets = zip(*_steps(loaded, windows), strict=True)
    return torch.cat(logits).double(), [token for part in targets for token in part]


@pytest.fixture(scope="module")
def demo(native_build: object) -> Iterator[LoadedModel]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KTOPS_ISA", "avx512vnni")
        loaded = load_model(EngineConfig(demo_path(), demo_path(), ctx_size=64))
    yield loaded
    loaded.free()


@pytest.mark.parametrize("bos", [0, None])
@pytest.mark.parametrize("size", [2, 7, 16, 50, 100])
def test_windows_predict_every_token_once_and_each_begins_for_itself(bos, size):
    windows = tokens(size=size, bos=bos)
    parts = list(windows)
    assert [t for part in parts for t in part.targets] == windows.token_ids[1:]
    assert len(parts) == windows.num_windows
    for index, part in enumerate(parts):
        before = windows.token_ids[index * size] if bos is None else bos
        assert part.inputs == [before, *part.targets[:-1]]
        assert len(part.inputs) == size or index == len(parts) - 1


def test_the_demo_has_a_begin_token_in_front_of_every_window(demo):
    source = TextFile(Path("x"), TEXT, "")
    windows = cut_text(source, demo.tokenizer, size=8)
    assert {window.inputs[0] for window in windows} == {demo.tokenizer.bos_token_id}
    assert windows.token_ids[1:] == demo.tokenizer.encode(TEXT)
    first = cut_text(source, demo.tokenizer, size=8, max_tokens=5)
    assert first.token_ids == windows.token_ids[:6]


def test_log_probabilities_and_perplexity_are_those_of_a_direct_computation():
    loaded, windows = fake_model(), tokens()
    done = evaluate(loaded, windows)
    logits, targets = all_logits(loaded, windows)
    losses = torch.nn.functional.cross_entropy(logits, torch.tensor(targets), reduction="none")
    assert np.allclose(done.log_probs, -losses.numpy(), rtol=1e-12)
    found = done.perplexity
    assert found.value == pytest.approx(math.exp(losses.mean()), rel=1e-12)
    error = found.value * float(losses.std()) / math.sqrt(len(targets))
    assert found.standard_error == pytest.approx(error, rel=1e-12)


def test_the_perplexity_of_the_demo_is_that_of_transformers_in_float64(demo):
    windows = cut_text(TextFile(Path("x"), TEXT, ""), demo.tokenizer, size=40)
    oracle = Oracle(demo.gguf, demo.config)
    losses = []
    for window in windows:
        theirs = oracle.logits(window.inputs).double()
        losses.append(
            torch.nn.functional.cross_entropy(theirs, torch.tensor(window.targets), reduction="sum")
        )
    mean = float(sum(losses)) / windows.num_targets
    assert evaluate(demo, windows).perplexity.mean_nll == pytest.approx(mean, rel=1e-4)


def test_a_window_does_not_depend_on_those_before_it(demo):
    windows = cut_text(TextFile(Path("x"), TEXT, ""), demo.tokenizer, size=30)
    together = evaluate(demo, windows).log_probs
    alone = [
        evaluate(demo, TokenWindows([window.inputs[0], *window.targets], windows.bos, 30)).log_probs
        for window in windows
    ]
    assert np.array_equal(together, np.concatenate(alone))


def test_a_long_window_is_computed_in_the_chunks_of_the_plan():
    whole, cut = fake_model(), fake_model(chunk=6)
    windows = tokens(count=20)
    assert np.array_equal(evaluate(whole, windows).log_probs, evaluate(cut, windows).log_probs)
    assert whole.runner.steps == [(0, 16), (0, 4)]
    assert cut.runner.steps == [(0, 6), (6, 6), (12, 4), (0, 4)]


def test_a_run_against_itself_differs_in_nothing(tmp_path, demo):
    windows = cut_text(TextFile(Path("x"), TEXT, ""), demo.tokenizer, size=30)
    before = saved(tmp_path / "r", demo, windows)
    found = compared(tmp_path / "r", demo, windows).comparison
    assert (found.kl_mean, found.kl_max, found.difference, found.rms_probability) == (0, 0, 0, 0)
    assert found.same_best == 1
    assert found.reference == before.perplexity
    assert 0 < found.outside < 1


def test_the_same_run_writes_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        saved(tmp_path / name, fake_model(), tokens())
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("noise", [1e-3, 0.3, 20.0])
def test_the_divergence_of_a_small_vocabulary_is_the_whole_one(tmp_path, noise):
    vocab = 300
    windows = tokens(vocab=vocab)
    ours, theirs = fake_model(vocab, noise), fake_model(vocab)
    saved(tmp_path / "r", theirs, windows)
    done = compared(tmp_path / "r", ours, windows)
    q, targets = all_logits(ours, windows)
    p, _ = all_logits(theirs, windows)
    log_p, log_q = p.log_softmax(1), q.log_softmax(1)
    kl = (log_p.exp() * (log_p - log_q)).sum(1).numpy()
    found = done.comparison
    assert np.allclose(done.divergence.kl, kl, rtol=1e-3, atol=1e-9)
    assert found.kl_mean == pytest.approx(kl.mean(), rel=1e-3)
    assert found.kl_median == pytest.approx(np.median(kl), rel=1e-3)
    assert found.kl_p99 == pytest.approx(np.quantile(kl, 0.99), rel=1e-3)
    assert found.kl_max == pytest.approx(kl.max(), rel=1e-3)
    assert found.same_best == float((p.argmax(1) == q.argmax(1)).double().mean())
    rows = torch.arange(len(targets))
    apart = (log_q.exp() - log_p.exp())[rows, targets]
    assert found.rms_probability == pytest.approx(float(apart.square().mean().sqrt()), rel=1e-6)
    assert found.outside == 0
    nll = [-float(side[rows, targets].mean()) for side in (log_q, log_p)]
    assert found.difference == pytest.approx(math.exp(nll[0]) - math.exp(nll[1]), rel=1e-6)


def test_tokens_that_are_not_kept_count_as_one_so_the_divergence_is_at_most_the_whole(tmp_path):
    windows = tokens()
    ours, theirs = fake_model(noise=0.2), fake_model()
    saved(tmp_path / "r", theirs, windows)
    done = compared(tmp_path / "r", ours, windows)
    p = all_logits(theirs, windows)[0].softmax(1).numpy()
    q = all_logits(ours, windows)[0].softmax(1).numpy()
    whole = (p * np.log(p / q)).sum(1)
    order = (-p).argsort(1)
    kept, left = order[:, : kept_tokens(VOCAB)], order[:, kept_tokens(VOCAB) :]
    p_rest, q_rest = (np.take_along_axis(side, left, 1) for side in (p, q))
    outside, ours_outside = p_rest.sum(1), q_rest.sum(1)
    p, q = (np.take_along_axis(side, kept, 1) for side in (p, q))
    expected = (p * np.log(p / q)).sum(1) + outside * np.log(outside / ours_outside)
    assert np.allclose(done.divergence.kl, expected, rtol=1e-3, atol=1e-12)
    assert np.allclose(done.divergence.outside, outside, rtol=1e-9)
    assert (done.divergence.kl <= whole).all()
    # What is left out is the share of the rest times the divergence within it.
    within = (p_rest / outside[:, None]) * np.log(
        (p_rest / outside[:, None]) / (q_rest / ours_outside[:, None])
    )
    assert np.allclose(whole - done.divergence.kl, outside * within.sum(1), rtol=1e-3, atol=1e-7)


def test_extreme_logits_give_finite_divergences():
    theirs = torch.tensor([[1e4, 0.0, -1e4], [0.0, 0.0, 0.0], [3e38, -3e38, 0.0]])
    ours = theirs.flip(1)
    found = compare(ours, make_records(theirs, [0, 1, 2], 3))
    assert np.isfinite(found.kl).all()
    assert found.kl[1] == 0
    assert found.kl[0] == pytest.approx(2e4)


def test_a_tie_for_the_best_is_no_difference():
    records = make_records(torch.tensor([[1.0, 1.0, 0.0]]), [0], 3)
    assert compare(torch.tensor([[1.0, 1.0, 0.0]]), records).same_best.all()
    assert not compare(torch.tensor([[0.0, 0.0, 1.0]]), records).same_best.any()


def test_pieces_make_no_difference(monkeypatch):
    logits = torch.randn(40, VOCAB, generator=torch.Generator().manual_seed(0))
    targets = list(range(40))
    whole = target_log_probs(logits, targets), make_records(logits, targets, 512)
    monkeypatch.setattr("ktops_engine.evaluate.scores.PIECE_VALUES", 7 * VOCAB)
    assert np.allclose(whole[0], target_log_probs(logits, targets), rtol=1e-14)
    assert np.array_equal(whole[1]["ids"], make_records(logits, targets, 512)["ids"])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_logits_that_are_not_finite_end_the_run(bad, monkeypatch):
    loaded = fake_model()
    proper = loaded.runner.logits

    def broken(batch) -> torch.Tensor:
        logits = proper(batch)
        if len(loaded.runner.steps) == 2:
            logits[1, 3] = bad
        return logits

    monkeypatch.setattr(loaded.runner, "logits", broken)
    with pytest.raises(KtopsError, match="after 16 tokens") as caught:
        evaluate(loaded, tokens())
    assert caught.value.code == "logits-not-finite"


def test_progress_tells_tokens_and_the_mean_so_far():
    seen: list[EvalProgress] = []
    done = evaluate(fake_model(), tokens(), on_progress=seen.append)
    assert [(step.done_tokens, step.total_tokens) for step in seen] == [
        (16, 50), (32, 50), (48, 50), (50, 50),
    ]  # fmt: skip
    assert seen[-1].mean_nll == pytest.approx(done.perplexity.mean_nll)


def test_perplexities_that_no_float_holds_are_infinite_and_one_token_has_no_error():
    assert perplexity_of(np.array([-1e4, -1e4])).value == math.inf
    assert math.isnan(perplexity_of(np.array([-1.0])).standard_error)


def test_windows_must_fit_the_model():
    assert choose_window(None, 4096) == DEFAULT_WINDOW
    assert choose_window(None, 128) == 128
    assert choose_window(128, 128) == 128
    for asked in (-1, 0, 1, 129):
        with pytest.raises(KtopsError, match="2 to 128 tokens") as caught:
            choose_window(asked, 128)
        assert caught.value.exit_status == 2


def test_files_that_are_no_text_are_refused(tmp_path, demo):
    path = tmp_path / "text"
    for data, said in (
        (None, "No such file"),
        (b"ab\xffcd", "byte 2 is not UTF-8"),
        (b"", "no token"),
        (b"x" * (MAX_TEXT_BYTES + 1), "more than 64 MiB"),
    ):
        if data is not None:
            path.write_bytes(data)
        with pytest.raises(KtopsError, match=said) as caught:
            cut_text(read_text(path), demo.tokenizer, size=8)
        assert caught.value.code == "text-not-usable"
        assert caught.value.hint
    with pytest.raises(KtopsError, match="directory"):
        read_text(tmp_path)


def test_at_least_one_token_must_be_asked_for(demo):
    for asked in (0, -3):
        with pytest.raises(KtopsError, match="at least one token"):
            cut_text(TextFile(Path("x"), TEXT, ""), demo.tokenizer, size=8, max_tokens=asked)
