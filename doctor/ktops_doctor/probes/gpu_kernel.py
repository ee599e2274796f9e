"""Child: compile one of the engine's GPU kernels anew, run it, and hold it against float64."""

import json
import os
import sys
import time

NUM_TOKENS, WIDTH = 7, 1000
EPS = 1e-6


def measure() -> dict[str, object]:
    os.environ["TRITON_ALWAYS_COMPILE"] = "1"  # what is in the cache already would prove nothing
    import torch

    if not torch.cuda.is_available():
        return {"error": "torch finds no GPU"}
    from ktops_engine.kernels.norm import rms_norm

    x = torch.randn(NUM_TOKENS, WIDTH, device="cuda")
    weight = torch.rand(WIDTH, device="cuda")
    began = time.perf_counter()
    y = rms_norm(x, weight, EPS)
    torch.cuda.synchronize()
    seconds = time.perf_counter() - began
    exact = x.double()
    exact = exact / (exact.square().mean(dim=1, keepdim=True) + EPS).sqrt() * weight.double()
    error = (y.double() - exact).norm() / exact.norm()
    return {"seconds": seconds, "relative_error": float(error)}


try:
    facts = measure()
except BaseException as error:  # noqa: BLE001 - whatever breaks is the answer
    facts = {"error": " ".join(f"{type(error).__name__}: {error}".split())}
sys.stdout.write(json.dumps(facts) + "\n")
