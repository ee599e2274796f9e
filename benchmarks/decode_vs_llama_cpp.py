"""Decode and prompt speed of ktops and of a llama.cpp-family program on one GGUF, in turns.

    python benchmarks/decode_vs_llama_cpp.py --peer-python VENV/bin/python [--gguf FILE]

The peer's interpreter must have llama-cpp-python installed, or with `--peer-module ik_llama_cpp`
ik-llama-cpp-python. Both sides run in processes of their own, A B A B, and the medians and their
ratio are printed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time

PEER = """
import importlib, json, sys, time
name, path, threads, num_prompt, num_tokens = sys.argv[1], *sys.argv[2:3], *map(int, sys.argv[3:])
Llama = importlib.import_module(name).Llama
counts = dict(n_ctx=2048, n_batch=512, n_threads=threads, n_threads_batch=threads)
llm = Llama(path, verbose=False, **counts)
prompt = [(7 * i) % 3000 + 3 for i in range(num_prompt)]
for attempt in range(2):
    llm.reset()
    start = time.perf_counter()
    llm.eval(prompt)
    prompt_s = time.perf_counter() - start
    token = llm.sample(temp=0.0, repeat_penalty=1.0)
    start = time.perf_counter()
    for _ in range(num_tokens):
        llm.eval([token])
        token = llm.sample(temp=0.0, repeat_penalty=1.0)
    decode_s = time.perf_counter() - start
print(json.dumps([num_prompt / prompt_s, num_tokens / decode_s]))
"""

# Its own class samples in Python, a tenth of a second a token: here any token goes in next. Weights
# are repacked while they are loaded, as its users do on a CPU.
IK_PEER = """
import json, sys, time
from types import SimpleNamespace
from ik_llama_cpp import _ctypes_api as api
from ik_llama_cpp._internals import IkContext, make_batch_range, make_batch_single
path, threads, num_prompt, num_tokens = sys.argv[2], *map(int, sys.argv[3:])
api.llama_backend_init()
params = api.llama_model_default_params()
params.use_mmap, params.repack_tensors = False, True
model = SimpleNamespace(model=api.llama_model_load_from_file(path.encode(), params))
context = IkContext(model, n_ctx=2048, n_threads=threads)

def decode(batch):
    assert context.decode(batch) == 0
    context.get_logits()[0]

for attempt in range(2):
    context.kv_cache_clear()
    batch = make_batch_range([(7 * i) % 3000 + 3 for i in range(num_prompt)])
    start = time.perf_counter()
    decode(batch)
    prompt_s = time.perf_counter() - start
    start = time.perf_counter()
    for i in range(num_tokens):
        decode(make_batch_single((11 * i) % 3000 + 3, num_prompt + i))
    decode_s = time.perf_counter() - start
print(json.dumps([num_prompt / prompt_s, num_tokens / decode_s]))
"""
PEERS = {"llama_cpp": PEER, "ik_llama_cpp": IK_PEER}


def run_ktops(path: str, threads: int, num_prompt: int, num_tokens: int) -> list[float]:
    """Tokens per second of the prompt and of decoding; the second of two attempts."""
    from pathlib import Path

    from ktops_engine import LLM, EngineConfig, SamplingParams

    llm = LLM.load(EngineConfig(Path(path), cpu_infer=threads, ctx_size=2048))
    prompt = [(7 * i) % 3000 + 3 for i in range(num_prompt)]
    params = SamplingParams(temperature=0, max_tokens=num_tokens + 1, ignore_eos=True)
    for _ in range(2):
        times = [time.perf_counter()]
        times += [time.perf_counter() for _ in llm.generate(prompt, params)]
    llm.shutdown()
    return [num_prompt / (times[1] - times[0]), num_tokens / (times[-1] - times[1])]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gguf")
    parser.add_argument("--peer-python", required=True)
    parser.add_argument("--peer-module", choices=PEERS, default="llama_cpp")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--side", choices=["ktops"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.gguf is None:
        from ktops_engine.demo import demo_path

        args.gguf = str(sorted(demo_path().glob("*.gguf"))[0])
    numbers = [str(args.threads), str(args.prompt), str(args.tokens)]
    if args.side == "ktops":
        print(json.dumps(run_ktops(args.gguf, *map(int, numbers))))
        return
    flags = ["--gguf", args.gguf, "--threads", numbers[0], "--prompt", numbers[1]]
    flags += ["--tokens", numbers[2], "--peer-python", args.peer_python, "--side", "ktops"]
    commands = {
        "ktops": [sys.executable, __file__, *flags],
        args.peer_module: [
            args.peer_python,
            "-c",
            PEERS[args.peer_module],
            args.peer_module,
            args.gguf,
            *numbers,
        ],
    }
    results: dict[str, list[list[float]]] = {name: [] for name in commands}
    for _ in range(args.rounds):
        for name, command in commands.items():
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(f"{name} failed:\n{done.stderr[-2000:]}")
            results[name].append(json.loads(done.stdout.splitlines()[-1]))
    for column, title in enumerate((f"prompt of {args.prompt}", f"decode of {args.tokens}")):
        ours, theirs = (
            [row[column] for row in results[name]] for name in ("ktops", args.peer_module)
        )
        ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
        print(
            f"{title}: ktops {statistics.median(ours):.0f} tok/s, {args.peer_module} "
            f"{statistics.median(theirs):.0f} tok/s, ratio {statistics.median(ratios):.2f} "
            f"({min(ratios):.2f} to {max(ratios):.2f})"
        )


if __name__ == "__main__":
    main()
