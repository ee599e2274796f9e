"""One evaluation from its command line to its figures: text, reference, model, run."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ktops.evaluation.matching import refuse_other_text, refuse_other_tokens, same_number
from ktops.evaluation.progress import EvalView
from ktops.launch.nodes import show_nodes
from ktops.launch.progress import COMPILING, LoadView
from ktops.launch.serving import admit, planned_config
from ktops.launch.stages import Order, obtain
from ktops.output import Mode, Output
from ktops.settings import Settings
from ktops_engine.text import text

if TYPE_CHECKING:
    from ktops.hub.choose import ModelChoice
    from ktops.launch.plan_stage import Site
    from ktops_engine.evaluate.reference import ReferenceHeader, ReferenceReader
    from ktops_engine.evaluate.reference_writer import ReferenceWriter
    from ktops_engine.evaluate.run import Evaluation
    from ktops_engine.evaluate.windows import TextFile, TokenWindows
    from ktops_engine.loader import LoadedModel
    from ktops_engine.source import ModelSource


@dataclass(frozen=True)
class Request:
    """What to evaluate. None: `window` and `max_tokens` of the reference, or else a usual window
    and the whole text; no `reference` to compare with; nothing to `save` a reference in."""

    order: Order
    file: Path
    window: int | None
    max_tokens: int | None
    reference: Path | None
    save: Path | None


@dataclass(frozen=True)
class Evaluated:
    """A request, what was computed for it, and how. `seconds` is the time of computing."""

    request: Request
    header: ReferenceHeader
    num_windows: int
    gpu_layers: int
    reference: ReferenceHeader | None
    evaluation: Evaluation
    seconds: float


def run_evaluation(output: Output, settings: Settings, request: Request) -> Evaluated:
    """Evaluate. Everything that can be wrong is found before weights are read; whatever ends the
    run early leaves no file behind.

    Raises KtopsError as every stage.
    """
    from ktops_engine.evaluate.windows import read_text

    # One document is printed in the end: before it, nothing on stdout and no questions.
    stages = replace(output, mode=Mode.QUIET) if output.is_json else output
    with ExitStack() as resources:
        source = read_text(request.file)
        reader = _open_reference(request, source, resources)
        choice = obtain(stages, settings, request.order)
        model = _open_model(request, choice)
        windows = _read_as_tokens(request, source, choice, model, reader)
        _say_text(output, request, windows)
        writer = _open_writer(request, windows, model.config.vocab_size, resources)
        settings = replace(settings, ctx_size=windows.size)
        site = admit(stages, settings, request.order, choice, source=model)
        loaded = _load(output, site)
        resources.callback(loaded.free)
        header = _header(request, source, windows, site, loaded)
        if writer is not None:
            writer.begin(header)
        began = time.monotonic()
        evaluation = _evaluate(output, loaded, windows, reader, writer)
        seconds = time.monotonic() - began
        if writer is not None:
            writer.commit()
    return Evaluated(
        request=request,
        header=header,
        num_windows=windows.num_windows,
        gpu_layers=loaded.placement.gpu_layers,
        reference=reader.header if reader else None,
        evaluation=evaluation,
        seconds=seconds,
    )


def _open_reference(
    request: Request, source: TextFile, resources: ExitStack
) -> ReferenceReader | None:
    """The reference to compare with, of the same text; and a look at the place for a new one."""
    from ktops_engine.evaluate.reference import ReferenceReader
    from ktops_engine.evaluate.reference_writer import refuse_existing

    if request.save is not None:
        refuse_existing(request.save, replace=request.order.force)
    if request.reference is None:
        return None
    reader = resources.enter_context(ReferenceReader(request.reference))
    refuse_other_text(reader, source)
    return reader


def _open_model(request: Request, choice: ModelChoice) -> ModelSource:
    """The headers of the model's files, for its tokenizer and then for its plan."""
    from ktops.launch.dummy import dummy_weights
    from ktops_engine.config import EngineConfig
    from ktops_engine.source import open_source

    dummy = request.order.dummy
    weights = None if dummy is None else dummy_weights(dummy, choice)
    return open_source(EngineConfig(choice.gguf_path, choice.model_path, dummy=weights))


def _read_as_tokens(
    request: Request,
    source: TextFile,
    choice: ModelChoice,
    model: ModelSource,
    reader: ReferenceReader | None,
) -> TokenWindows:
    """The text by the model's tokenizer, cut as it is asked for or as the reference has it."""
    from ktops_engine.evaluate.windows import choose_window, cut_text
    from ktops_engine.tokenizer import load_tokenizer

    window, max_tokens = request.window, request.max_tokens
    if reader is not None:
        header = reader.header
        window = same_number("--window", window, header.window, reader.path)
        max_tokens = same_number("--max-tokens", max_tokens, header.num_positions, reader.path)
    windows = cut_text(
        source,
        load_tokenizer(model.gguf, choice.model_path),
        size=choose_window(window, model.config.max_position_embeddings),
        max_tokens=max_tokens,
    )
    if reader is not None:
        refuse_other_tokens(reader, windows, model.config.vocab_size)
    return windows


def _say_text(output: Output, request: Request, windows: TokenWindows) -> None:
    output.stage(
        "text",
        text(
            "{file}: {tokens} tokens in windows of {window}",
            file=request.file,
            tokens=windows.num_targets,
            window=windows.size,
        ),
    )


def _open_writer(
    request: Request, windows: TokenWindows, vocab_size: int, resources: ExitStack
) -> ReferenceWriter | None:
    """The file for a new reference, before anything is computed that could not be written."""
    from ktops_engine.evaluate.reference import reference_bytes
    from ktops_engine.evaluate.reference_writer import ReferenceWriter

    if request.save is None:
        return None
    size = reference_bytes(windows.num_targets, vocab_size)
    writer = ReferenceWriter(request.save, size, replace=request.order.force)
    return resources.enter_context(writer)


def _evaluate(
    output: Output,
    loaded: LoadedModel,
    windows: TokenWindows,
    reader: ReferenceReader | None,
    writer: ReferenceWriter | None,
) -> Evaluation:
    from ktops_engine.evaluate.run import evaluate

    shown = _on_stderr(output)
    if loaded.placement.gpus:
        shown.stage("load", COMPILING)
    with EvalView(shown) as view:
        return evaluate(loaded, windows, reference=reader, writer=writer, on_progress=view.update)


def _load(output: Output, site: Site) -> LoadedModel:
    """Load the model, showing progress on stderr."""
    from ktops_engine.loader import load_model

    shown = _on_stderr(output)

    def on_note(note: str) -> None:
        if note not in site.placement.notes:
            shown.stage("note", note)

    with LoadView(shown) as view:
        loaded = load_model(planned_config(site), view.update, on_note, site.machine, site.source)
        view.finish()
    show_nodes(shown, loaded.node_shares)
    return loaded


def _on_stderr(output: Output) -> Output:
    """The same without events on stdout."""
    return replace(output, mode=Mode.HUMAN) if output.is_json else output


def _header(
    request: Request, source: TextFile, windows: TokenWindows, site: Site, loaded: LoadedModel
) -> ReferenceHeader:
    from ktops_engine.evaluate.reference import ReferenceHeader, kept_tokens

    dummy = request.order.dummy
    words = [site.name, *(dummy.flags if dummy is not None else [])]
    return ReferenceHeader(
        model=" ".join(words),
        isa=loaded.native.isa,
        text_sha256=source.sha256,
        tokens_sha256=windows.sha256,
        window=windows.size,
        vocab_size=loaded.config.vocab_size,
        num_positions=windows.num_targets,
        top_k=kept_tokens(loaded.config.vocab_size),
    )
