"""Decode and prompt speed of ktops and of a llama.cpp-family program on one GGUF, in turns.

    python benchmarks/decode_vs_llama_cpp.py --peer-python VENV/bin/python [--gguf FILE]

The peer's interpreter must have llama-cpp-python installed, or with `--peer-module ik_llama_cpp`
ik-llama-cpp-python. Both sides load the file in processes of their own, which wait for their turns:
there must be RAM for both. A turn is a prompt and the tokens after it, a second or two, because the
memory of a shared machine can be half as fast a minute later. Medians and the median of the ratios
of neighbouring turns are printed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from typing import IO

PEER = """
import importlib, json, sys, time
name, path, threads, num_prompt, num_tokens = sys.argv[1], *sys.argv[2:3], *map(int, sys.argv[3:])
Llama = importlib.import_module(name).Llama
counts = dict(n_ctx=2048, n_batch=512, n_threads=threads, n_threads_batch=threads)
llm = Llama(path, verbose=False, **counts)
prompt = [(7 * i) % 3000 + 3 for i in range(num_prompt)]
for turn in sys.stdin:
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
    print(json.dumps([num_prompt / prompt_s, num_tokens / decode_s]), flush=True)
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

for turn in sys.stdin:
    context.kv_cache_clear()
    batch = make_batch_range([(7 * i) % 3000 + 3 for i in range(num_prompt)])
    start = time.perf_counter()
    decode(batch)
    prompt_s = time.perf_counter() - start
    start = time.perf_counter()
    for i in range(num_tokens):
        decode(make_batch_single((11 * i) % 3000 + 3, num_prompt + i))
    decode_s = time.perf_counter() - start
    print(json.dumps([num_prompt / prompt_s, num_tokens / decode_s]), flush=True)
"""
PEERS = {"llama_cpp": PEER, "ik_llama_cpp": IK_PEER}


def serve_turns(path: str, threads: int, num_prompt: int, num_tokens: int) -> None:
    """ktops' side: tokens per second of the prompt and of decoding for each line that comes in."""
    from pathlib import Path

    from ktops_engine import LLM, EngineConfig, SamplingParams

    llm = LLM.load(EngineConfig(Path(path), cpu_infer=threads, ctx_size=2048))
    prompt = [(7 * i) % 3000 + 3 for i in range(num_prompt)]
    params = SamplingParams(temperature=0, max_tokens=num_tokens + 1, ignore_eos=True)
    for _ in sys.stdin:
        times = [time.perf_counter()]
        times += [time.perf_counter() for _ in llm.generate(prompt, params)]
        rates = [num_prompt / (times[1] - times[0]), num_tokens / (times[-1] - times[1])]
        print(json.dumps(rates), flush=True)
    llm.shutdown()


class Side:
    """A program that has loaded the file and waits for its turns."""

    def __init__(self, name: str, command: list[str], errors: IO[str]) -> None:
        self.name = name
        self.rates: list[list[float]] = []
        self._errors = errors
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
        )
        self._take()  # the first turn loads and warms up

    def turn(self) -> None:
        self.rates.append(self._take())

    def column(self, index: int) -> list[float]:
        return [rates[index] for rates in self.rates]

    def _take(self) -> list[float]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("turn\n")
        self._process.stdin.flush()
        for line in self._process.stdout:
            if line.startswith("["):  # a peer's library may print, too
                return json.loads(line)
        self._errors.seek(0)
        raise SystemExit(f"{self.name} ended:\n{self._errors.read()[-2000:]}")


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
        serve_turns(args.gguf, *map(int, numbers))
        return
    flags = ["--gguf", args.gguf, "--threads", numbers[0], "--prompt", numbers[1]]
    flags += ["--tokens", numbers[2], "--peer-python", args.peer_python, "--side", "ktops"]
    code = PEERS[args.peer_module]
    peer_command = [args.peer_python, "-c", code, args.peer_module, args.gguf, *numbers]
    with tempfile.TemporaryFile("w+") as errors:
        ours = Side("ktops", [sys.executable, __file__, *flags], errors)
        peer = Side(args.peer_module, peer_command, errors)
        for _ in range(args.rounds):
            ours.turn()
            peer.turn()
    for index, title in enumerate((f"prompt of {args.prompt}", f"decode of {args.tokens}")):
        both = list(zip(ours.column(index), peer.column(index), strict=True))
        ratios = [a / b for a, b in both]
        low, _, high = statistics.quantiles(ratios, n=4)
        print(
            f"{title}: ktops {statistics.median(ours.column(index)):.0f} tok/s, {peer.name} "
            f"{statistics.median(peer.column(index)):.0f} tok/s, ratio "
            f"{statistics.median(ratios):.2f} (half of them {low:.2f} to {high:.2f})"
        )


if __name__ == "__main__":
    main()
