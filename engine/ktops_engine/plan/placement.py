"""Where everything goes, in bytes. Pure: model facts x machine facts x wishes -> Placement.

What every token uses (attention, norms and routers, shared experts, output head, dense layers) goes
to the first GPU with the latent cache; the routed experts and the token embedding stay in RAM.
Spare memory of all GPUs can hold the routed experts of whole layers, that of the first copies of
the most used ones of all layers; a first GPU that is too small leaves the last layers and the head
to the CPU, and without a GPU everything lies in RAM.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from types import MappingProxyType

from ktops_engine.config import EngineConfig
from ktops_engine.errors import EXIT_USAGE, KtopsError
from ktops_engine.machine import GpuFacts, MachineFacts
from ktops_engine.model_config import ModelConfig
from ktops_engine.plan.expert_placement import expert_layers, experts_on_gpus
from ktops_engine.plan.hot_experts import HotFit
from ktops_engine.plan.model_bytes import ModelFacts, Part
from ktops_engine.plan.shares import Placement, Share
from ktops_engine.plan.sizes import (
    BFLOAT16_BYTES,
    BLOCK_SIZE,
    RUNTIME_BYTES,
    SPARE_RAM_SHARE,
    cache_bytes_per_token,
    further_gpu_buffer_bytes,
    gpu_buffer_bytes,
    handed_bytes,
    kv_up_bytes,
)
from ktops_engine.plan.threads import choose_cpus
from ktops_engine.text import Text, text

DEFAULT_CTX_SIZE = 8192
# Of a GPU's memory, what an allocator can really hand out: pages and pieces get lost.
GPU_USABLE_SHARE = 0.98
# Prompt tokens a GPU computes at a time, best first: the experts stream in once for all of them.
# The largest take gigabytes, and are for those who give the GPU's memory away.
GPU_PREFILL_CHUNKS = (4096, 2048, 1024, 512)
LARGE_PREFILL_CHUNKS = (16384, 8192)


def place(config: EngineConfig, facts: ModelFacts, machine: MachineFacts) -> Placement:
    """Place a model on a machine, whether its RAM suffices (`Placement.fits`) or not.

    `config.gpu_memory_bytes` is the memory to use on each GPU, `config.gpu_experts` the most routed
    experts to put there. Both None use as little as serves the model at its full
    form: what every token uses, and routed experts only when all of them fit or when RAM cannot
    hold them with a little to spare. Otherwise, where it is known how often experts were chosen,
    copies of the most used ones take the place of whole layers as far as that saves more reads.

    Raises KtopsError: invalid-cpu-infer, invalid-ctx-size (status 2).
    """
    cpus, notes = choose_cpus(config.cpu_infer, machine, facts.bytes.total)
    ctx_size = _ctx_size(config.ctx_size, facts.config)
    num_blocks = _num_blocks(config, ctx_size)
    for chunk in _prefill_chunks(config, machine, ctx_size):
        first_gpu, gpu_layers, is_whole = _fill_first_gpu(config, facts, machine, num_blocks, chunk)
        ram = _in_ram(facts, first_gpu, gpu_layers, num_blocks, chunk)
        use = facts.expert_use if is_whole else None
        rooms = _rooms(config, facts, machine, first_gpu, chunk)
        ram_lack = ram.total() - int(machine.available_ram_bytes / (1 + SPARE_RAM_SHARE))
        experts, hot = experts_on_gpus(config, facts, gpu_layers, rooms, ram_lack, use)
        ram[Part.ROUTED_EXPERTS] -= sum(map(sum, experts))
        if is_whole and ram.total() <= machine.available_ram_bytes:
            break
    gpus = _gpu_shares(config, facts, machine, first_gpu, experts, hot, chunk)
    by_gpu = tuple(len(experts[share.gpu_index]) for share in gpus)
    return Placement(
        cpus=cpus,
        ctx_size=ctx_size,
        block_size=BLOCK_SIZE,
        num_blocks=num_blocks,
        prefill_chunk=chunk if gpu_layers else config.prefill_chunk,
        ram=_share("ram", machine.available_ram_bytes, ram),
        gpus=gpus,
        gpu_layers=gpu_layers,
        gpu_head=is_whole and gpu_layers > 0,
        gpu_experts=sum(by_gpu) * facts.config.n_routed_experts,
        expert_layers_by_gpu=by_gpu,
        hot_experts=hot.num_experts,
        hot_share=hot.saved_share,
        notes=(*notes, *_rounding(config, facts, gpu_layers, hot)),
    )


def usable_bytes(config: EngineConfig, gpu: GpuFacts) -> int:
    """What the plan may put on a GPU: what is free there, or less when less is wished for."""
    free = int(gpu.free_bytes * GPU_USABLE_SHARE)
    return free if config.gpu_memory_bytes is None else min(free, config.gpu_memory_bytes)


def every_token_gpu_bytes(config: EngineConfig, facts: ModelFacts) -> int:
    """Bytes on the first GPU when it holds all that every token uses, with the smallest buffers."""
    num_blocks = _num_blocks(config, _ctx_size(config.ctx_size, facts.config))
    steps = sum(sum(step.values()) for step in _steps(facts, num_blocks))
    return gpu_buffer_bytes(facts, GPU_PREFILL_CHUNKS[-1]) + steps


def least_gpu_bytes(config: EngineConfig, facts: ModelFacts) -> int:
    """Bytes on the first GPU when it holds a single layer."""
    num_blocks = _num_blocks(config, _ctx_size(config.ctx_size, facts.config))
    return gpu_buffer_bytes(facts, GPU_PREFILL_CHUNKS[-1]) + sum(
        _steps(facts, num_blocks)[0].values()
    )


def _prefill_chunks(config: EngineConfig, machine: MachineFacts, ctx_size: int) -> tuple[int, ...]:
    """Prompt chunks to try, the best first."""
    if not machine.gpus:
        return (config.prefill_chunk,)
    *large, smallest = GPU_PREFILL_CHUNKS
    if config.gpu_memory_bytes is not None:
        large = [*LARGE_PREFILL_CHUNKS, *large]
    return (*(chunk for chunk in large if chunk <= ctx_size), smallest)


def _fill_first_gpu(
    config: EngineConfig, facts: ModelFacts, machine: MachineFacts, num_blocks: int, chunk: int
) -> tuple[Counter[Part], int, bool]:
    """Parts on the first GPU without routed experts, layers there, and whether all that every token
    uses is there.

    Whole steps in a fixed order, stopping at the first that does not fit, so that more memory never
    holds less.
    """
    if not machine.gpus:
        return Counter(), 0, True
    parts = Counter({Part.BUFFERS: gpu_buffer_bytes(facts, chunk)})
    budget = usable_bytes(config, machine.gpus[0])
    steps = _steps(facts, num_blocks)
    taken = 0
    for step in steps:
        if parts.total() + sum(step.values()) > budget:
            break
        parts.update(step)
        taken += 1
    layers = min(taken, facts.config.num_hidden_layers)
    return (parts if layers else Counter(), layers, taken == len(steps))


def _steps(facts: ModelFacts, num_blocks: int) -> list[dict[Part, int]]:
    """What the first GPU takes one after the other: what every token uses of a layer, with its
    cache, layer by layer from the first on; then norm and head.

    A token crosses to the CPU once, after the last layer there. The head comes last although it
    holds no cache: a byte of it saves a decode no more time than a byte of a layer, and a prompt
    needs it for one token alone.
    """
    model, weights = facts.config, facts.bytes
    per_token = cache_bytes_per_token(model, BFLOAT16_BYTES) // model.num_hidden_layers
    cache = num_blocks * BLOCK_SIZE * per_token
    layers = [
        {
            Part.ATTENTION: layer.attention,
            Part.ROUTER: layer.router,
            Part.SHARED_EXPERTS: layer.shared_experts,
            Part.DENSE_LAYERS: layer.dense,
            Part.KV_CACHE: cache,
        }
        for layer in weights.layers
    ]
    return [*layers, {Part.ROUTER: weights.final_norm, Part.OUTPUT_HEAD: weights.head}]


def _in_ram(
    facts: ModelFacts, on_gpu: Mapping[Part, int], gpu_layers: int, num_blocks: int, chunk: int
) -> Counter[Part]:
    """Parts in RAM while all routed experts are there."""
    model = facts.config
    cpu_layers = model.num_hidden_layers - gpu_layers
    parts = Counter(
        {part: total - on_gpu.get(part, 0) for part, total in facts.bytes.by_part().items()}
    )
    share = cpu_layers / model.num_hidden_layers
    parts[Part.KV_UP] = round(kv_up_bytes(model) * share)
    parts[Part.KV_CACHE] = round(num_blocks * BLOCK_SIZE * cache_bytes_per_token(model) * share)
    parts[Part.BUFFERS] = RUNTIME_BYTES + (handed_bytes(model, chunk) if gpu_layers else 0)
    return parts


def _rooms(
    config: EngineConfig,
    facts: ModelFacts,
    machine: MachineFacts,
    first_gpu: Mapping[Part, int],
    chunk: int,
) -> list[int]:
    """Bytes that each GPU has for routed experts, the first one beside what every token uses."""
    on_first, on_further = sum(first_gpu.values()), further_gpu_buffer_bytes(facts, chunk)
    return [
        usable_bytes(config, gpu) - (on_further if index else on_first)
        for index, gpu in enumerate(machine.gpus)
    ]


def _gpu_shares(
    config: EngineConfig,
    facts: ModelFacts,
    machine: MachineFacts,
    first_gpu: Counter[Part],
    experts: list[list[int]],
    hot: HotFit,
    chunk: int,
) -> tuple[Share, ...]:
    """The GPUs that hold anything."""
    shares = []
    buffers = further_gpu_buffer_bytes(facts, chunk)
    for index, (gpu, sizes) in enumerate(zip(machine.gpus, experts, strict=True)):
        parts = Counter(first_gpu if index == 0 else {Part.BUFFERS: buffers})
        parts[Part.ROUTED_EXPERTS] += sum(sizes)
        parts[Part.HOT_EXPERTS] += hot.num_bytes if index == 0 else 0
        if sizes or (index == 0 and first_gpu):
            shares.append(_share(f"gpu{index}", usable_bytes(config, gpu), parts))
    return tuple(shares)


def _rounding(config: EngineConfig, facts: ModelFacts, gpu_layers: int, hot: HotFit) -> list[Text]:
    """What is said of a number of experts that is not one of whole layers."""
    asked, one = config.gpu_experts, facts.config.n_routed_experts
    if not gpu_layers or hot.num_experts or asked is None:
        return []
    if asked >= one * len(expert_layers(facts)):
        return []
    if asked % one == 0:
        return []
    return [
        text(
            "--gpu-experts {asked}: GPU memory takes the {one} experts of a layer together, so "
            "{most} at most",
            asked=asked,
            one=one,
            most=asked // one * one,
        )
    ]


def _share(device: str, usable: int, parts: Counter[Part]) -> Share:
    ordered = {part: parts[part] for part in Part if parts[part]}
    return Share(device, usable, MappingProxyType(ordered))


def _num_blocks(config: EngineConfig, ctx_size: int) -> int:
    return config.max_running * -(-ctx_size // BLOCK_SIZE)


def _ctx_size(asked: int | None, model: ModelConfig) -> int:
    limit = model.max_position_embeddings
    if asked is None:
        return min(limit, DEFAULT_CTX_SIZE)
    if not 1 <= asked <= limit:
        raise KtopsError(
            "invalid-ctx-size",
            text(
                "--ctx-size {asked}: this model spans 1 to {limit} tokens",
                asked=asked,
                limit=limit,
            ),
            f"ktops serve --ctx-size {min(limit, DEFAULT_CTX_SIZE)}",
            exit_status=EXIT_USAGE,
        )
    return asked
