"""Mixed requests for some time, and whether the process grows: RSS and GPU memory.

    python benchmarks/mixed_prompts.py --model r1-q4km --num-hidden-layers 5 --seconds 1800

Random weights; prompts of 1 to 3,000 tokens, answers of 1 to 64, up to three at once, one in
eight given up early. Prints memory once a tenth of the time; fails for an engine that ends.
"""

from __future__ import annotations

import argparse
import queue
import random
import time

import psutil
from hybrid_speed import vram_bytes

GIB = 1 << 30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="r1-q4km")
    parser.add_argument("--num-hidden-layers", type=int)
    parser.add_argument("--seconds", type=float, default=1800)
    parser.add_argument("--running", type=int, default=3)
    parser.add_argument("--gpu-experts", type=int, help="0: all routed experts in RAM")
    args = parser.parse_args()

    from ktops.hub.catalogue import find_entry
    from ktops.planning.model_facts import described_facts
    from ktops_engine import LLM, EngineConfig, SamplingParams
    from ktops_engine.config import DummyWeights
    from ktops_engine.demo import demo_path

    dummy = DummyWeights(described_facts(find_entry(args.model)).config, args.num_hidden_layers)
    llm = LLM.load(
        EngineConfig(
            demo_path(),
            max_running=args.running,
            ctx_size=4096,
            dummy=dummy,
            gpu_experts=args.gpu_experts,
        )
    )
    draw = random.Random(0)
    outputs: queue.SimpleQueue = queue.SimpleQueue()
    running: set[str] = set()
    counts = {"requests": 0, "tokens": 0, "prompt tokens": 0, "given up": 0, "errors": 0}

    def submit() -> None:
        prompt = draw.choices(range(3, 5000), k=int(3 ** draw.uniform(0, 7.28)))
        params = SamplingParams(temperature=0.6, max_tokens=draw.randint(1, 64), ignore_eos=True)
        running.add(llm.submit(prompt, params, outputs.put))
        counts["requests"] += 1
        counts["prompt tokens"] += len(prompt)

    started = time.monotonic()
    shown = 0.0
    while (passed := time.monotonic() - started) < args.seconds:
        if passed >= shown:
            shown += args.seconds / 10
            rss = psutil.Process().memory_info().rss
            vram = sum(vram_bytes()) / GIB
            print(f"{passed:6.0f} s: RSS {rss / GIB:.3f} GiB, VRAM {vram:.3f} GiB, {counts}",
                  flush=True)  # fmt: skip
        while len(running) < args.running + 1:
            submit()
        output = outputs.get(timeout=120)
        counts["tokens"] += output.token_id is not None
        counts["errors"] += output.error is not None
        if output.finish_reason is not None:
            running.discard(output.request_id)
        elif draw.random() < 1 / 256:
            llm.abort(output.request_id)
            counts["given up"] += 1
    llm.shutdown()


if __name__ == "__main__":
    main()
