"""Child: are a model's weight files whole, and does the engine know their kind?

Argument: a shard, the folder of one model, or the word "demo" for the embedded model.
"""

import json
import sys
from pathlib import Path


def say(**facts: object) -> None:
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


def look(argument: str) -> None:
    from ktops_engine.gguf import open_gguf
    from ktops_engine.model_config import resolve_model_config

    if argument == "demo":
        from ktops_engine.demo import demo_path

        path = demo_path()
    else:
        path = Path(argument)
    gguf = open_gguf(path)
    resolve_model_config(gguf, None)
    say(num_shards=len(gguf.paths), total_bytes=gguf.total_bytes, architecture=gguf.architecture)


try:
    look(sys.argv[1])
except BaseException as error:  # noqa: BLE001 - whatever breaks is the answer
    explained = isinstance(getattr(error, "code", None), str)
    text = " ".join(str(error).split())
    say(
        error=text if explained else f"{type(error).__name__}: {text}",
        hint=str(getattr(error, "hint", "")),
    )
