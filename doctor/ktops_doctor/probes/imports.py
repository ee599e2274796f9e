"""Child: do the compiled packages that the engine needs besides torch import?"""

import importlib
import json
import sys

for name in ("numpy", "tokenizers", "gguf"):
    try:
        version = str(getattr(importlib.import_module(name), "__version__", ""))
        facts = {name: {"version": version}}
    except BaseException as error:  # noqa: BLE001 - whatever breaks is the answer
        facts = {name: {"error": " ".join(f"{type(error).__name__}: {error}".split())}}
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()
