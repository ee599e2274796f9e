"""Child: how fast do this machine's cores read its RAM, by the native library's own kernels?"""

import json
import sys


def measure() -> dict[str, object]:
    from ktops_engine.bandwidth import measure_read_bandwidth
    from ktops_engine.machine import detect_machine
    from ktops_engine.native.build import find_current
    from ktops_engine.native.load import load_native

    info = find_current()
    if info is None:
        return {"built": False}
    machine = detect_machine()
    rate = measure_read_bandwidth(load_native(info), machine)
    return {"built": True, "bytes_per_s": rate, "threads": len(machine.cpus)}


try:
    facts = measure()
except BaseException as error:  # noqa: BLE001 - whatever breaks is the answer
    facts = {"error": " ".join(f"{type(error).__name__}: {error}".split())}
sys.stdout.write(json.dumps(facts) + "\n")
