"""Kernels are launched, or compiled beside one another instead."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
from typing import Any

import pytest
import torch

from ktops_engine.kernels.launch import compile_launches, is_compiling, launch

CPU = torch.device("cpu")


class Kernel:
    """Notes what it is asked for, as Triton's are asked."""

    def __init__(self) -> None:
        self.launched: list[Any] = []
        self.compiled: list[Any] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return lambda *args, **constants: self.launched.append((grid, args, constants))

    def warmup(self, *args: object, grid: tuple[int, ...], **constants: object) -> None:
        self.compiled.append((grid, args, constants))


def test_a_kernel_is_launched_with_what_it_is_given():
    kernel = Kernel()
    launch(kernel, (2, 3), 5, 0.5, TILE=16, num_warps=4)
    assert kernel.launched == [((2, 3), (5, 0.5), {"TILE": 16, "num_warps": 4})]
    assert not kernel.compiled


def test_while_compiling_a_kernel_is_compiled_and_not_launched():
    kernel, said = Kernel(), []

    def work() -> None:
        said.append(is_compiling())
        launch(kernel, (2,), 5, TILE=16)

    compile_launches(work, CPU, 2)
    assert kernel.compiled == [((2,), (5,), {"TILE": 16})]
    assert not kernel.launched
    assert (said, is_compiling()) == ([True], False)
    launch(kernel, (2,), 5, TILE=16)
    assert len(kernel.launched) == 1


def test_each_variant_is_asked_for_once():
    kernel, other = Kernel(), Kernel()
    memory = torch.zeros(64)

    def work() -> None:
        for tensor in (memory, memory[4:], memory.clone()):  # all aligned to 16 bytes
            for grid in ((1,), (7,)):
                launch(kernel, grid, tensor, 3, TILE=16)
        launch(kernel, (1,), memory[1:], 3, TILE=16)
        launch(kernel, (1,), memory.int(), 3, TILE=16)
        launch(kernel, (1,), memory, 4, TILE=16)
        launch(kernel, (1,), memory, 3, TILE=32)
        launch(other, (1,), memory, 3, TILE=16)

    compile_launches(work, CPU, 1)
    assert (len(kernel.compiled), len(other.compiled)) == (5, 1)


def test_other_threads_launch_meanwhile():
    kernel = Kernel()

    def work() -> None:
        thread = threading.Thread(target=launch, args=(kernel, (1,), 5))
        thread.start()
        thread.join()

    compile_launches(work, CPU, 1)
    assert len(kernel.launched) == 1
    assert not kernel.compiled


def test_what_fails_is_raised_and_kernels_are_launched_again():
    def work() -> None:
        raise RuntimeError("no such kernel")

    with pytest.raises(RuntimeError, match="no such kernel"):
        compile_launches(work, CPU, 1)
    assert not is_compiling()


# Triton's compiler needs no GPU, only the word that there is one; and kernels that are not
# interpreted, which is decided when they are defined.
COMPILED = """
    import triton, triton.language as tl, torch
    from triton.backends.compiler import GPUTarget
    from ktops_engine.kernels.launch import compile_launches, launch

    class Driver:
        get_current_target = staticmethod(lambda: GPUTarget("cuda", 90, 32))
        get_current_device = staticmethod(lambda: 0)
        get_current_stream = staticmethod(lambda device: 0)

    triton.runtime.driver.set_active(Driver())

    @triton.jit
    def copy(x, y, SIZE: tl.constexpr):
        tl.static_assert(SIZE <= 64)
        at = tl.arange(0, SIZE)
        tl.store(y + at, tl.load(x + at))

    x, y, cpu = torch.ones(64), torch.zeros(64), torch.device("cpu")

    def compile(*sizes):
        compile_launches(lambda: [launch(copy, (1,), x, y, SIZE=s) for s in sizes], cpu, 2)

    compiled = []
    triton.knobs.compilation.listener = lambda **found: compiled.append(found["cache_hit"])
    compile(16, 32, 64, 16)
    print("compiled", compiled)
    try:
        compile(8, 128)
    except triton.CompilationError:
        print("failed")
    compile(4)  # what failed has left nothing behind
    print("written", bool(y.any()), len(compiled))
"""


def test_triton_compiles_all_of_them_and_a_failure_is_raised(tmp_path):
    script = tmp_path / "compiled.py"
    script.write_text(textwrap.dedent(COMPILED), encoding="utf-8")
    env = os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path / "cache")}
    command = [sys.executable, "-W", "ignore", str(script)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == [
        "compiled [False, False, False]",
        "failed",
        "written False 5",
    ], done.stderr
