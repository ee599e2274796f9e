"""The engine on this machine's GPU and CPU: random weights at a model's true shapes, one request.

    python benchmarks/hybrid_speed.py --model r1-q4km --num-hidden-layers 11 --gpu-experts 0

Prints decode and prompt tokens a second, where the time of a token goes, what the memory alone
would allow a decode, and speeds and memory beside what the plan predicted of them. Runs the engine
as the server does, but without HTTP.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from pathlib import Path

import psutil
from answer_times import answer_times
from token_parts import TokenParts


def vram_bytes() -> list[int]:
    """Memory in use on every GPU, by all processes; empty without a GPU."""
    import torch

    if not torch.cuda.is_available():
        return []
    both = [torch.cuda.mem_get_info(index) for index in range(torch.cuda.device_count())]
    return [total - free for free, total in both]


def held_line(name: str, predicted: tuple[float, float] | None, measured: float) -> str:
    """A measured figure beside its prediction, (low, high)."""
    if predicted is None or not predicted[0]:
        return f"{name:24} {'-':>16} {measured:10.1f}"
    low, high = predicted
    ratios = f"{measured / low:.2f} and {measured / high:.2f}"
    return f"{name:24} {f'{low:.1f} to {high:.1f}':>16} {measured:10.1f} {ratios:>24}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="r1-q4km")
    parser.add_argument("--num-hidden-layers", type=int)
    parser.add_argument("--prompts", type=int, nargs="*", default=[512, 4096])
    parser.add_argument("--decode", type=int, default=64)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--cpu-infer", type=int)
    parser.add_argument("--ctx-size", type=int, default=8192)
    parser.add_argument("--gpu-memory-gib", type=float)
    parser.add_argument("--gpu-experts", type=int, help="0: all routed experts in RAM")
    parser.add_argument("--json")
    args = parser.parse_args()

    from ktops.hub.catalogue import find_entry
    from ktops.planning.machines.live import this_machine
    from ktops.planning.model_facts import described_facts
    from ktops_engine import LLM, EngineConfig
    from ktops_engine.bandwidth import measure_read_bandwidth
    from ktops_engine.config import DummyWeights
    from ktops_engine.demo import demo_path
    from ktops_engine.plan import facts_of_files, predict, predict_prompt
    from ktops_engine.source import open_source

    machine = this_machine()
    dummy = DummyWeights(described_facts(find_entry(args.model)).config, args.num_hidden_layers)
    config = EngineConfig(
        demo_path(),
        ctx_size=args.ctx_size,
        cpu_infer=args.cpu_infer,
        dummy=dummy,
        gpu_experts=args.gpu_experts,
        gpu_memory_bytes=args.gpu_memory_gib and int(args.gpu_memory_gib * (1 << 30)),
    )
    vram_before = vram_bytes()
    started = time.perf_counter()
    filled_at = [started]

    def on_progress(progress: object) -> None:
        filled_at[0] = time.perf_counter()

    llm = LLM.load(config, on_progress=on_progress, on_note=print)
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
        "planned_ram_gib": placement.total_bytes / (1 << 30),
        "expert_layers_by_gpu": placement.expert_layers_by_gpu,
        "planned_vram_gib": [share.total_bytes / (1 << 30) for share in placement.gpus],
        "prefill_chunk": placement.prefill_chunk,
    }
    print(found, flush=True)
    draw = random.Random(0)
    vocabulary = range(3, min(source.config.vocab_size, llm.tokenizer.vocab_size))

    def prompt(count: int) -> list[int]:
        return draw.choices(vocabulary, k=count)

    answer_times(llm, prompt(16), 8)

    def decode() -> list[float]:
        answers = (answer_times(llm, prompt(8), args.decode) for _ in range(args.repeat))
        return [gap for _, gaps in answers for gap in gaps]

    before = llm.stats().experts
    bytes_before, seconds_before = before.num_bytes, before.seconds
    gaps = decode()
    after = llm.stats().experts
    found["decode_tok_s"] = 1 / statistics.median(gaps)
    found["decode_ms_p10_p90"] = [
        1e3 * sorted(gaps)[int(len(gaps) * share)] for share in (0.1, 0.9)
    ]
    seconds = after.seconds - seconds_before
    found["expert_gb_s"] = (after.num_bytes - bytes_before) / 1e9 / max(seconds, 1e-9)
    if TokenParts.can_tell(llm):
        parts = TokenParts(llm)
        with parts.watch():
            parts_gaps = decode()
        found |= parts.of(statistics.fmean(parts_gaps))
        if read := measure_read_bandwidth(llm._loaded.native, machine):
            found["read_gb_s_now"] = read / 1e9
            found["experts_share_of_reads"] = found["expert_gb"] / found["experts_ms"] * 1e12 / read
    if machine.read_bandwidth:
        experts = source.config.num_experts_per_tok / source.config.n_routed_experts
        limit = facts.bytes.routed_experts * experts / machine.read_bandwidth
        found["decode_memory_limit_tok_s"] = 1 / limit
    predicted = getattr(predict(placement, facts, machine), "decode_tokens_per_s", None)
    held = [("decode, tok/s", predicted, found["decode_tok_s"])]
    for count in args.prompts:
        answer_times(llm, prompt(count), 1)
        rates = [count / answer_times(llm, prompt(count), 1)[0] for _ in range(args.repeat)]
        found[f"prompt_{count}_tok_s"] = [round(rate, 1) for rate in rates]
        predicted = getattr(predict_prompt(placement, facts, machine, count), "tokens_per_s", None)
        held.append((f"prompt of {count}, tok/s", predicted, statistics.median(rates)))
        print(f"prompt of {count}: {found[f'prompt_{count}_tok_s']} tok/s", flush=True)
    found["rss_gib"] = psutil.Process().memory_info().rss / (1 << 30)
    used = zip(vram_bytes(), vram_before, strict=True)
    found["vram_gib"] = [(now - before) / (1 << 30) for now, before in used]
    held += [
        (f"memory of {share.device}, GiB", (planned,) * 2, used)
        for share, planned, used in zip(
            placement.gpus, found["planned_vram_gib"], found["vram_gib"], strict=False
        )
    ]
    held.append(("RAM, GiB", (placement.total_bytes / (1 << 30),) * 2, found["rss_gib"]))
    found["predicted"] = {name: predicted for name, predicted, _ in held}
    for name, value in found.items():
        print(f"{name:28} {value}")
    print(f"{'':24} {'predicted':>16} {'measured':>10} {'ratio to low and high':>24}")
    for name, predicted, measured in held:
        print(held_line(name, predicted, measured))
    if args.json:
        Path(args.json).write_text(json.dumps(found, indent=1))
    llm.shutdown()


if __name__ == "__main__":
    main()
