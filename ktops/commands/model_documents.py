"""What `ktops models` says about models: rows for people, documents for programs."""

from __future__ import annotations

from collections.abc import Sequence

from ktops.hub.catalogue import DEMO
from ktops.hub.store import State, StoredModel, mend_command
from ktops.output import Output, cell_width
from ktops.settings import Settings
from ktops.units import format_bytes, format_bytes_decimal
from ktops_engine.text import Text, joined, text


def model_lines(
    found: Sequence[StoredModel], used: Sequence[int], settings: Settings, output: Output
) -> list[str]:
    """A table of all models, and what is wrong with those that are not whole; `used` are the bytes
    of the disk that each takes."""
    rows = [
        (
            ("* " if _is_default(model, settings) else "  ") + model.name,
            model.entry.title,
            format_bytes(model.size_bytes) if model.size_bytes else "",
            output.say(state_words(model.state)),
            format_bytes(taken) if taken else "",
            output.say(_place(model)),
        )
        for model, taken in zip(found, used, strict=True)
    ]
    words = (text("Name"), text("Model"), text("Size"), text("State"), text("Disk"), text("Folder"))
    name, *rest = (output.say(word) for word in words)
    lines = output.table(rows, (f"  {name}", *rest), dim_columns=(5,))
    for model in found:
        if model.state is State.INCOMPLETE:
            fix = joined(["  ", text("Fix:"), " ", mend_command(model, settings)], "")
            lines += ["", _incomplete(model), fix]
    return [*lines, "", text("Models are looked for in {folder}", folder=settings.models_dir)]


def model_details(model: StoredModel, used: int, output: Output) -> list[str]:
    """Everything that is known of one model, a line each; it takes `used` bytes of the disk."""
    needs = model.entry.needs
    state = state_words(model.state)
    rows = [
        (text("Model"), model.entry.title),
        (text("State"), joined([state, model.problem], ": ") if model.problem else state),
        (text("Size"), format_bytes(model.size_bytes)),
        (text("Disk"), format_bytes(used)),
        (text("Folder"), str(model.folder)),
        (text("Weights"), _weights(model)),
        (text("Configuration"), model.entry.config_repo or str(model.config_path or "")),
        (text("Memory"), text("needs {size}", size=format_bytes_decimal(needs.ram_bytes))),
        (text("GPU memory"), text("needs {size}", size=format_bytes_decimal(needs.vram_bytes))),
        (text("CPU cores"), text("needs {size}", size=needs.cores)),
    ]
    said = [(output.say(name), output.say(value)) for name, value in rows]
    width = max(cell_width(name) for name, _ in said) + 2
    return [f"{name}{' ' * (width - cell_width(name))}{value}".rstrip() for name, value in said]


def model_document(model: StoredModel, used: int, settings: Settings) -> dict[str, object]:
    """One model for programs; it takes `used` bytes of the disk."""
    needs = model.entry.needs
    return {
        "alias": model.name,
        "title": model.entry.title,
        "state": model.state,
        "problem": model.problem or None,
        "size_bytes": model.size_bytes,
        "disk_bytes": used,
        "folder": str(model.folder),
        "gguf_path": str(model.gguf_path) if model.gguf_path else None,
        "config_path": str(model.config_path) if model.config_path else None,
        "is_default": _is_default(model, settings),
        "is_registered": model.is_registered,
        "needs": {
            "ram_bytes": needs.ram_bytes,
            "vram_bytes": needs.vram_bytes,
            "cores": needs.cores,
            "disk_bytes": needs.disk_bytes,
        },
    }


def state_words(state: State) -> Text:
    """A state for people."""
    if state is State.COMPLETE:
        return text("complete")
    return text("incomplete") if state is State.INCOMPLETE else text("not downloaded")


def _incomplete(model: StoredModel) -> Text:
    return text("{name} is incomplete: {problem}", name=model.name, problem=model.problem)


def _weights(model: StoredModel) -> str:
    if model.is_registered:
        return text("yours, registered; ktops leaves them alone")
    if model.name == DEMO:
        return text("comes with ktops")
    return model.entry.weights_repo or " ".join(model.entry.download_args[:1])


def _place(model: StoredModel) -> str:
    if model.name == DEMO:
        return text("comes with ktops")
    return "" if model.state is State.ABSENT else str(model.folder)


def _is_default(model: StoredModel, settings: Settings) -> bool:
    return model.name == settings.default_model
