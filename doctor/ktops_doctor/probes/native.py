"""Child: does the engine import, is its native library built and current, and does it load?"""

import json
import os
import sys


def say(**facts: object) -> None:
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


def explain(error: BaseException) -> str:
    code = getattr(error, "code", None)
    text = " ".join(str(error).split())
    return text if isinstance(code, str) else f"{type(error).__name__}: {text}"


def damaged() -> dict[str, object]:
    """The newest library of these sources that was recorded and is not there, or not whole."""
    from ktops_engine.native import cache, sources

    ours = sources.hash_sources(sources.find_sources())
    records = cache.cache_folder(os.environ).glob(f"*/{cache.RECORD}")
    for path in sorted(records, key=lambda path: path.stat().st_mtime, reverse=True):
        library = path.with_name(cache.LIBRARY)
        record = json.loads(path.read_text())
        size = library.stat().st_size if library.exists() else None
        if record.get("sources_hash") == ours and size != record.get("library_bytes"):
            wanted = record.get("library_bytes")
            return {"damaged": str(library), "bytes": size, "wanted_bytes": wanted}
    return {}


def look() -> None:
    try:
        from ktops_engine.native import build, load
    except BaseException as error:  # noqa: BLE001 - whatever breaks is the answer
        say(import_error=explain(error))
        return
    try:
        info = build.find_current()
    except BaseException as error:  # noqa: BLE001
        say(find_error=explain(error))
        return
    say(built=info is not None)
    if info is None:
        say(**damaged())
        return
    say(path=str(info.path), numa=info.numa, compiler=info.compiler, built_at=str(info.built_at))
    try:
        native = load.load_native(info)
        say(isa=native.isa, isa_available=list(native.isa_available))
    except BaseException as error:  # noqa: BLE001
        say(load_error=explain(error))


look()
