"""The engine on this machine's GPU and CPU: random weights at a model's true shapes, one request.

    python benchmarks/hybrid_speed.py --model r1-q4km --num-hidden-layers 11 --gpu-experts 0

Prints decode and prompt tokens a second, where the time of a token goes, what the memory alone
would allow a decode, and speeds and memory beside what the plan predicted of them. Runs the engine
as the server does, but without HTTP.

`--distinct-expert-layers` is for machines without the RAM for a model (shared_layers.py).
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from contextlib import ExitStack
from pathlib import Path

import psutil
from answer_times import answer_times, batch_rate
from shared_layers import SharedLayers, layers_sharing_memory
from token_parts import TokenParts

GIB = 1 << 30
TOKENS_AFTER = 16  # of the answer to each long prompt
TOKENS_TOGETHER = 24  # of each answer of several


def vram_bytes() -> list[int]:
    """Memory in use on every GPU, by all processes; empty without a GPU."""
    import torch

    if not torch.cuda.is_available():
        return []
    both = [torch.cuda.mem_get_info(index) for index in range(torch.cuda.device_count())]
    return [total - free for free, total in both]


def percentiles_ms(seconds: list[float], shares: tuple[float, ...]) -> list[float]:
    """Of some times, those that so large shares of all are shorter than."""
    return [1e3 * sorted(seconds)[int(len(seconds) * share)] for share in shares]


def held_line(name: str, predicted: tuple[float, float] | None, measured: float) -> str:
    """A measured figure beside its prediction, (low, high)."""
    if predicted is None or not predicted[0]:
        return f"{name:24} {'-':>16} {measured:10.1f}"
    low, high = predicted
    ratios = f"{measured / low:.2f} and {measured / high:.2f}"
    return f"{name:24} {f'{low:.1f} to {high:.1f}':>16} {measured:10.1f} {ratios:>24}"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="r1-q4km")
    parser.add_argument("--num-hidden-layers", type=int)
    parser.add_argument(
        "--distinct-expert-layers",
        type=int,
        help="as many layers of routed experts in RAM have memory, and the others share it",
    )
    parser.add_argument("--prompts", type=int, nargs="*", default=[512, 4096])
    parser.add_argument("--decode", type=int, default=64)
    parser.add_argument("--requests", type=int, nargs="*", default=[], help="decoded together")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--cpu-infer", type=int)
    parser.add_argument("--ctx-size", type=int, default=8192)
    parser.add_argument("--gpu-memory-gib", type=float)
    parser.add_argument("--gpu-experts", type=int, help="0: all routed experts in RAM")
    parser.add_argument("--json")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()

    from ktops.hub.catalogue import find_entry
    from ktops.planning.machines.live import this_machine
    from ktops.planning.model_facts import described_facts
    from ktops_engine import EngineConfig
    from ktops_engine.config import DummyWeights
    from ktops_engine.demo import demo_path

    machine = this_machine()
    dummy = DummyWeights(described_facts(find_entry(args.model)).config, args.num_hidden_layers)
    config = EngineConfig(
        demo_path(),
        ctx_size=args.ctx_size,
        max_running=max([1, *args.requests]),
        cpu_infer=args.cpu_infer,
        dummy=dummy,
        gpu_experts=args.gpu_experts,
        gpu_memory_bytes=args.gpu_memory_gib and int(args.gpu_memory_gib * GIB),
    )
    shared = None
    with ExitStack() as sharing:
        if args.distinct_expert_layers is not None:
            layers = layers_sharing_memory(config, machine, args.distinct_expert_layers)
            try:
                shared = sharing.enter_context(layers)
            except (MemoryError, ValueError) as error:
                raise SystemExit(f"--distinct-expert-layers: {error}") from None
        measure(args, config, machine, shared)


def measure(args: argparse.Namespace, config, machine, shared: SharedLayers | None) -> None:
    """Load what `config` says and print what it does; keep it in `args.json` after each part."""
    from ktops_engine import LLM
    from ktops_engine.bandwidth import measure_read_bandwidth
    from ktops_engine.gpus import detect_gpus
    from ktops_engine.plan import facts_of_files, predict, predict_prompt
    from ktops_engine.source import open_source

    vram_before = vram_bytes()
    started = time.perf_counter()
    filled_at = [started]

    def on_progress(progress: object) -> None:
        filled_at[0] = time.perf_counter()

    llm = LLM.load(config, on_progress, print, None if shared is None else shared.machine)
    source = open_source(config)
    facts = facts_of_files(source.gguf, source.config)
    placement = llm.placement
    found: dict[str, object] = {
        "cpu": machine.name,
        "threads": placement.num_threads,
        "read_gb_s": machine.read_bandwidth and machine.read_bandwidth / 1e9,
        "load_s": time.perf_counter() - started,
        "of_that_fill_s": filled_at[0] - started,
        "layers": source.config.num_hidden_layers,
        "gpu_layers": placement.gpu_layers,
        "planned_ram_gib": placement.total_bytes / GIB,
        "expert_layers_by_gpu": placement.expert_layers_by_gpu,
        "planned_vram_gib": [share.total_bytes / GIB for share in placement.gpus],
        "prefill_chunk": placement.prefill_chunk,
    }
    if shared is not None:
        found["expert_layers_in_ram"] = shared.num_layers
        found["of_them_distinct"] = args.distinct_expert_layers
        found["ram_gib_left_out"] = shared.left_out_bytes / GIB
    print(found, flush=True)

    def keep() -> None:
        if args.json:
            Path(args.json).write_text(json.dumps(found, indent=1))

    draw = random.Random(0)
    vocabulary = range(3, min(source.config.vocab_size, llm.tokenizer.vocab_size))

    def prompt(count: int) -> list[int]:
        return draw.choices(vocabulary, k=count)

    answer_times(llm, prompt(16), 8)

    def decode() -> list[float]:
        answers = (answer_times(llm, prompt(8), args.decode) for _ in range(args.repeat))
        return [gap for _, gaps in answers for gap in gaps]

    if read := measure_read_bandwidth(llm._loaded.native, machine):
        found["read_gb_s_before"] = read / 1e9
    before = llm.stats().experts
    bytes_before, seconds_before = before.num_bytes, before.seconds
    gaps = decode()
    after = llm.stats().experts
    found["decode_tok_s"] = 1 / statistics.median(gaps)
    found["decode_ms_p10_p90"] = percentiles_ms(gaps, (0.1, 0.9))
    found["decode_ms_p50_p99"] = percentiles_ms(gaps, (0.5, 0.99))
    seconds = after.seconds - seconds_before
    found["expert_gb_s"] = (after.num_bytes - bytes_before) / 1e9 / max(seconds, 1e-9)
    if machine.read_bandwidth:
        experts = source.config.num_experts_per_tok / source.config.n_routed_experts
        limit = facts.bytes.routed_experts * experts / machine.read_bandwidth
        found["decode_memory_limit_tok_s"] = 1 / limit
    print(f"decode: {found['decode_tok_s']:.2f} tok/s", flush=True)
    keep()
    for count in args.requests:
        batch_rate(llm, [prompt(8) for _ in range(count)], 8)
        rate = batch_rate(llm, [prompt(8) for _ in range(count)], TOKENS_TOGETHER)
        found[f"decode_of_{count}_tok_s"] = rate
        print(f"decode of {count} together: {rate:.2f} tok/s", flush=True)
    predicted = getattr(predict(placement, facts, machine), "decode_tokens_per_s", None)
    held = [("decode, tok/s", predicted, found["decode_tok_s"])]
    for count in args.prompts:
        answer_times(llm, prompt(count), 1)
        answers = [answer_times(llm, prompt(count), TOKENS_AFTER) for _ in range(args.repeat)]
        rates = [count / first for first, _ in answers]
        found[f"prompt_{count}_tok_s"] = [round(rate, 1) for rate in rates]
        found[f"ttft_{count}_s"] = [first for first, _ in answers]
        gaps = [gap for _, gaps in answers for gap in gaps]
        found[f"tpot_after_{count}_ms"] = 1e3 * statistics.median(gaps)
        predicted = getattr(predict_prompt(placement, facts, machine, count), "tokens_per_s", None)
        held.append((f"prompt of {count}, tok/s", predicted, statistics.median(rates)))
        print(f"prompt of {count}: {found[f'prompt_{count}_tok_s']} tok/s", flush=True)
        keep()
    found["rss_gib"] = psutil.Process().memory_info().rss / GIB
    used = zip(vram_bytes(), vram_before, strict=True)
    found["vram_gib"] = [(now - before) / GIB for now, before in used]
    found["vram_with_cuda_gib"] = [  # what nvidia-smi adds for this process, CUDA's own included
        (before.free_bytes - now.free_bytes) / GIB
        for before, now in zip(machine.gpus, detect_gpus(), strict=True)
    ]
    if TokenParts.can_tell(llm):
        parts = TokenParts(llm)
        with parts.watch():
            parts_gaps = decode()
        found |= parts.of(statistics.fmean(parts_gaps))
        if read := measure_read_bandwidth(llm._loaded.native, machine):
            found["read_gb_s_now"] = read / 1e9
            found["experts_share_of_reads"] = found["expert_gb"] / found["experts_ms"] * 1e12 / read
    held += [
        (f"memory of {share.device}, GiB", (planned,) * 2, used)
        for share, planned, used in zip(
            placement.gpus, found["planned_vram_gib"], found["vram_gib"], strict=False
        )
    ]
    left_out = 0 if shared is None else shared.left_out_bytes
    ram = (placement.total_bytes - left_out) / GIB
    held.append(("RAM, GiB", (ram,) * 2, found["rss_gib"]))
    found["predicted"] = {name: predicted for name, predicted, _ in held}
    for name, value in found.items():
        print(f"{name:28} {value}")
    print(f"{'':24} {'predicted':>16} {'measured':>10} {'ratio to low and high':>24}")
    for name, predicted, measured in held:
        print(held_line(name, predicted, measured))
    if shared is not None:
        print(
            f"{args.distinct_expert_layers} layers of experts stood for the {shared.num_layers} "
            f"in RAM: it is theirs, {left_out / GIB:.1f} GiB less than the model takes"
        )
    keep()
    llm.shutdown()


if __name__ == "__main__":
    main()
