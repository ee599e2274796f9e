"""Child: which libstdc++ does this interpreter load, and where are the libraries that want it?

The dynamic loader itself is asked (LD_PRELOAD, run paths, LD_LIBRARY_PATH, its cache): dlopen, then
a look at the memory map. Packages are located without being imported.
"""

import ctypes
import importlib.util
import json
import sys
from pathlib import Path

NAME = "libstdc++.so.6"


def origin(package: str) -> Path | None:
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        return None
    return Path(spec.origin) if spec is not None and spec.origin else None


def libraries() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    torch = origin("torch")
    if torch is not None:
        names = ("libtorch_python.so", "libtorch_cpu.so", "libtorch_cuda.so", "libc10.so")
        folder = torch.parent / "lib"
        found["torch"] = [str(folder / name) for name in names if (folder / name).exists()]
    return found


def libstdcxx() -> dict[str, str]:
    try:
        ctypes.CDLL(NAME)
    except OSError as error:
        return {"error": str(error)}
    for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines():
        path = Path("/" + line.partition("/")[2])
        if path.name.startswith("libstdc++"):
            link = path.with_name(NAME)  # the map names what the link leads to
            return {"path": str(link if link.exists() else path)}
    return {"error": f"{NAME} was loaded, and the memory map does not name it"}


sys.stdout.write(json.dumps({"libraries": libraries()}) + "\n")
sys.stdout.flush()
sys.stdout.write(json.dumps({"libstdcxx": libstdcxx()}) + "\n")
