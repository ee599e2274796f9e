"""`--load-format dummy`: random weights, from a file's tensor list or a model's shapes alone."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from ktops.hub.catalogue import load_catalogue
from ktops.hub.choose import ModelChoice
from ktops.output import Output
from ktops_engine.config import DummyWeights
from ktops_engine.errors import EXIT_USAGE, KtopsError
from ktops_engine.text import text

if TYPE_CHECKING:
    from ktops.launch.stages import Absent


class LoadFormat(StrEnum):
    """Where weights come from: the model's files, or a random generator."""

    AUTO = "auto"
    DUMMY = "dummy"


@dataclass(frozen=True)
class DummyOrder:
    """Random weights are asked for; with `num_hidden_layers`, only for the first so many layers."""

    num_hidden_layers: int | None = None

    @property
    def flags(self) -> list[str]:
        """How it is given again on a command line."""
        layers = self.num_hidden_layers
        cut = [] if layers is None else ["--num-hidden-layers", str(layers)]
        return ["--load-format", LoadFormat.DUMMY, *cut]


def read_load_format(
    load_format: LoadFormat, num_hidden_layers: int | None, command: str = "ktops serve"
) -> DummyOrder | None:
    """What the two options of `command` ask for; None: the model's own weights.

    Raises KtopsError "num-hidden-layers-of-files" (status 2).
    """
    if load_format is LoadFormat.DUMMY:
        return DummyOrder(num_hidden_layers)
    if num_hidden_layers is None:
        return None
    raise KtopsError(
        "num-hidden-layers-of-files",
        text("--num-hidden-layers goes with --load-format dummy alone"),
        f"{command} --load-format dummy --num-hidden-layers {num_hidden_layers}",
        exit_status=EXIT_USAGE,
    )


def choose_dummy(output: Output, absent: Absent) -> ModelChoice:
    """The demo's files for a model that is not here: its tokenizer goes with random weights."""
    from ktops_engine.demo import demo_path

    reason = text("its shapes alone; nothing is fetched")
    output.stage("model", text("{model} ({reason})", model=absent.name, reason=reason))
    output.event("model", name=absent.name, here=False, reason=str(reason))
    return ModelChoice(absent.name, reason, demo_path(), None, is_here=False)


def dummy_weights(order: DummyOrder, choice: ModelChoice) -> DummyWeights:
    """What the engine shall fill memory with.

    Raises KtopsError "model-not-described" for a model of unknown shapes that is not here.
    """
    if choice.is_here or choice.name is None:
        return DummyWeights(num_hidden_layers=order.num_hidden_layers)
    from ktops.planning.model_facts import described_facts

    config = described_facts(load_catalogue()[choice.name]).config
    return DummyWeights(config, order.num_hidden_layers)
