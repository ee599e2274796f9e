"""The only place that knows what fits where. Pure: model facts x machine facts -> Placement."""

from __future__ import annotations

from dataclasses import dataclass

from ktops_engine.config import EngineConfig
from ktops_engine.errors import EXIT_NOT_ENOUGH, EXIT_USAGE, KtopsError
from ktops_engine.machine import MachineFacts
from ktops_engine.model_config import ModelConfig

BLOCK_SIZE = 64  # tokens a cache block holds
DEFAULT_CTX_SIZE = 8192
FLOAT32_BYTES = 4
GIB = 1 << 30
# What the process needs besides weights and cache: interpreter, torch, activations of one chunk.
RUNTIME_BYTES = 768 << 20


@dataclass(frozen=True)
class Placement:
    """Where everything goes, in bytes, and with how many threads it is computed.

    On a CPU alone, weights stay quantised in RAM as they are in the file, except the key/value
    up-projection (`kv_up_bytes`): attention reads it along both of its sides, which blocks of
    quantised values along one side do not allow, so it is held as float32. The latent cache is
    float32 too: it is small, and the CPU has no faster form.
    """

    cpus: tuple[int, ...]
    ctx_size: int
    block_size: int
    num_blocks: int
    weights_bytes: int
    kv_up_bytes: int
    kv_cache_bytes: int
    runtime_bytes: int
    notes: tuple[str, ...]

    @property
    def num_threads(self) -> int:
        return len(self.cpus)

    @property
    def total_bytes(self) -> int:
        return self.weights_bytes + self.kv_up_bytes + self.kv_cache_bytes + self.runtime_bytes


def plan(
    config: EngineConfig, model: ModelConfig, weights_bytes: int, machine: MachineFacts
) -> Placement:
    """Place `model`, whose tensors take `weights_bytes` in the file, on `machine`.

    Raises KtopsError: invalid-cpu-infer, invalid-ctx-size (status 2), not-enough-memory (status 4).
    """
    cpus, notes = _threads(config.cpu_infer, machine)
    ctx_size = _ctx_size(config.ctx_size, model)
    num_blocks = config.max_running * -(-ctx_size // BLOCK_SIZE)
    placement = Placement(
        cpus=cpus,
        ctx_size=ctx_size,
        block_size=BLOCK_SIZE,
        num_blocks=num_blocks,
        weights_bytes=weights_bytes,
        kv_up_bytes=kv_up_bytes(model),
        kv_cache_bytes=num_blocks * BLOCK_SIZE * cache_bytes_per_token(model),
        runtime_bytes=RUNTIME_BYTES,
        notes=notes,
    )
    if placement.total_bytes > machine.available_ram_bytes:
        raise KtopsError(
            "not-enough-memory",
            f"this model needs {placement.total_bytes / GIB:.1f} GiB of RAM (weights "
            f"{(weights_bytes + placement.kv_up_bytes) / GIB:.1f}, cache for {ctx_size} tokens "
            f"{placement.kv_cache_bytes / GIB:.1f}, the rest {RUNTIME_BYTES / GIB:.1f}); "
            f"{machine.available_ram_bytes / GIB:.1f} of {machine.total_ram_bytes / GIB:.1f} GiB "
            "are available to this process",
            "free memory, give a smaller --ctx-size, or choose a smaller model: ktops models",
            exit_status=EXIT_NOT_ENOUGH,
        )
    return placement


def cache_bytes_per_token(model: ModelConfig) -> int:
    """Bytes of latent cache a token takes over all layers: one latent and one rotary key each."""
    width = model.kv_lora_rank + model.qk_rope_head_dim
    return model.num_hidden_layers * width * FLOAT32_BYTES


def kv_up_bytes(model: ModelConfig) -> int:
    """Bytes of the key/value up-projection of all layers in float32."""
    rows = model.num_attention_heads * (model.qk_nope_head_dim + model.v_head_dim)
    return model.num_hidden_layers * rows * model.kv_lora_rank * FLOAT32_BYTES


def _threads(
    cpu_infer: int | None, machine: MachineFacts
) -> tuple[tuple[int, ...], tuple[str, ...]]:
    num_cores = len(machine.cpus)
    if cpu_infer is None:
        return machine.cpus, ()
    if cpu_infer < 1:
        raise KtopsError(
            "invalid-cpu-infer",
            f"--cpu-infer {cpu_infer}: at least one CPU thread must compute the experts",
            f"ktops serve --cpu-infer {num_cores}",
            exit_status=EXIT_USAGE,
        )
    if cpu_infer > num_cores:
        note = (
            f"--cpu-infer {cpu_infer} is more than the {num_cores} physical cores this process may "
            f"use: {num_cores} threads are started"
        )
        return machine.cpus, (note,)
    return machine.cpus[:cpu_infer], ()


def _ctx_size(asked: int | None, model: ModelConfig) -> int:
    limit = model.max_position_embeddings
    if asked is None:
        return min(limit, DEFAULT_CTX_SIZE)
    if not 1 <= asked <= limit:
        raise KtopsError(
            "invalid-ctx-size",
            f"--ctx-size {asked}: this model spans 1 to {limit} tokens",
            f"ktops serve --ctx-size {min(limit, DEFAULT_CTX_SIZE)}",
            exit_status=EXIT_USAGE,
        )
    return asked
