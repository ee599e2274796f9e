"""Child: does Triton import, and does the C compiler that it calls find Python's headers?

The compiler and where Triton looks for the headers: triton/runtime/build.py, 3.5 to 3.9.
"""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import sysconfig


def say(**facts: object) -> None:
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


def headers() -> str:
    scheme = sysconfig.get_default_scheme()
    return sysconfig.get_path("include", "posix_prefix" if scheme == "posix_local" else scheme)


def compile_against_python(compiler: str) -> str:
    """What the compiler says of a file that includes Python.h, '' when nothing is wrong."""
    done = subprocess.run(
        (compiler, "-fsyntax-only", f"-I{headers()}", "-x", "c", "-"),
        input="#include <Python.h>\n",
        capture_output=True,
        text=True,
    )
    said = [line for line in done.stderr.splitlines() if "error" in line] or [done.stderr.strip()]
    return said[0] if done.returncode else ""


def try_compiler() -> None:
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        say(compiler="")
        return
    try:
        say(compiler=compiler, compiler_error=compile_against_python(compiler))
    except OSError as error:
        say(compiler=compiler, compiler_error=str(error))


def try_triton() -> None:
    found = importlib.util.find_spec("triton") is not None
    say(triton_found=found)
    if not found:
        return
    try:
        import triton
    except BaseException as error:  # noqa: BLE001 - whatever breaks is the answer
        say(triton_error=" ".join(f"{type(error).__name__}: {error}".split()))
        return
    say(triton=str(triton.__version__))


try_compiler()
try_triton()
