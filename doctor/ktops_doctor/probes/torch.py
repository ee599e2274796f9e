"""Child: is torch importable, and for which CUDA is it built?

Each stage prints its facts before the next begins, so that a crash leaves what came before it. The
whole import can take long. Where there is no GPU that torch might not find, {"enough": true} says,
once torch's compiled half is loaded, that the caller need not wait for the rest.
"""

import importlib.util
import json
import runpy
import sys
import threading
import time
import warnings
from pathlib import Path

POLL_SECONDS = 0.02


def say(**facts: object) -> None:
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


def origin(name: str) -> Path | None:
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return None
    return Path(spec.origin) if spec is not None and spec.origin else None


def explain(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


def has_driver() -> bool:
    return Path("/dev/nvidiactl").exists()


def describe(package: Path) -> None:
    """What torch/version.py says, which imports nothing of torch."""
    try:
        version = runpy.run_path(str(package.parent / "version.py"))
        say(torch_version=str(version["__version__"]), torch_cuda=version["cuda"])
    except Exception as error:  # noqa: BLE001 - the import below finds what is wrong
        say(version_error=explain(error))


def watch() -> None:
    """Say when torch's compiled half has been loaded: what breaks with the system is past then."""
    while True:
        module = sys.modules.get("torch._C")
        if module is not None and not getattr(module.__spec__, "_initializing", True):
            say(torch_libraries=True, enough=True)
            return
        time.sleep(POLL_SECONDS)


def try_torch() -> None:
    try:
        import torch
    except BaseException as error:  # noqa: BLE001 - whatever breaks is the answer
        say(torch_error=explain(error))
        return
    say(torch=str(torch.__version__), torch_cuda=torch.version.cuda)
    if torch.version.cuda and has_driver():
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            available = torch.cuda.is_available()
        say(cuda_available=available, cuda_warning=" ".join(str(w.message) for w in caught))


def main() -> None:
    torch = origin("torch")
    say(torch_found=torch is not None)
    if torch is not None:
        describe(torch)
        if not has_driver():
            threading.Thread(target=watch, daemon=True).start()
        try_torch()


main()
