"""What a caller asks of the engine. Resolved against model and machine by `plan`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ktops_engine.nodes import NumaMode

if TYPE_CHECKING:
    from ktops_engine.model_config import ModelConfig


@dataclass(frozen=True)
class DummyWeights:
    """Random weights in place of a file's, to measure speed and memory without reading them.

    `described` is a model whose files are not here: its weights get the types of Q4_K_M, and
    `gguf_path` only gives the tokenizer. None: the tensors are those that `gguf_path` lists.
    `num_hidden_layers` keeps the first so many layers.
    """

    described: ModelConfig | None = None
    num_hidden_layers: int | None = None


@dataclass(frozen=True)
class EngineConfig:
    """A request for an engine; None means: let the plan decide.

    `gguf_path` is any shard of a GGUF or the folder that holds one; `model_path` is a config-only
    folder (config.json, tokenizer.json, ...) whose values win over GGUF metadata. `cpu_infer` is
    the number of CPU threads, `ctx_size` the tokens one request may span (prompt and answer),
    `prefill_chunk` the prompt tokens that the CPU alone computes in one step. `gpu_memory_bytes` is
    the memory to use on each GPU, `gpu_experts` the most routed experts, over all layers, to hold
    there. `numa` shares the rows of the weights out over the NUMA nodes: "auto" where there are
    several and the library was built for that, "on" insists on the latter. `expert_counts` is the
    file of how often experts were chosen (`expert_counts.py`): None takes the one that is kept for
    the model, and none at all with random weights.
    """

    gguf_path: Path
    model_path: Path | None = None
    cpu_infer: int | None = None
    ctx_size: int | None = None
    prefill_chunk: int = 512
    max_running: int = 1
    max_waiting: int = 64
    gpu_memory_bytes: int | None = None
    gpu_experts: int | None = None
    dummy: DummyWeights | None = None
    numa: NumaMode = "auto"
    expert_counts: Path | None = None
