"""How kernels are launched; and how those of a whole model are compiled, beside one another.

Triton compiles a kernel where it is launched first, one after the other, and takes a second or two
for each: for a model's some hundred variants as many cores may do so at once as there are. What it
has compiled it keeps on disk.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from contextvars import ContextVar, copy_context
from typing import Any

import torch
import triton


class _Compilation:
    """Asks for each variant of a kernel once."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._asked: set[object] = set()

    def add(
        self, kernel: Any, grid: tuple[int, ...], args: tuple[Any, ...], constants: dict[str, Any]
    ) -> None:
        """Have compiled what a launch would run."""
        # Finer than what Triton tells apart, and far quicker to ask.
        what = kernel, *map(_kind, args), *sorted(constants.items())
        if what in self._asked:
            return
        self._asked.add(what)
        # For one GPU of several: the others find it on disk.
        on_gpu = self._device.type == "cuda"
        with torch.cuda.device(self._device) if on_gpu else nullcontext():
            kernel.warmup(*args, grid=grid, **constants)


_compilation: ContextVar[_Compilation | None] = ContextVar("compilation", default=None)


def launch(kernel: Any, grid: tuple[int, ...], *args: Any, **constants: Any) -> None:
    """Launch a Triton kernel on the current stream; within `compile_launches` have it compiled
    instead.

    `constants`: those of its arguments that it is compiled for, and Triton's, such as num_warps.
    """
    compilation = _compilation.get()
    if compilation is None:
        kernel[grid](*args, **constants)
    else:
        compilation.add(kernel, grid, args, constants)


def is_compiling() -> bool:
    """Whether nothing is launched now: tensors that kernels write hold what their memory held."""
    return _compilation.get() is not None


def compile_launches(work: Callable[[], None], device: torch.device, num_threads: int) -> None:
    """Do `work` without the kernels it launches, which are compiled on `num_threads` threads; on
    return all are. Launches from threads that `work` starts are not meant: those run.

    Raises what `work` raises, or what Triton does when a kernel cannot be compiled.
    """

    def compile_all() -> None:
        _compilation.set(_Compilation(device))
        with (
            ThreadPoolExecutor(num_threads, thread_name_prefix="ktops-compile") as threads,
            triton.AsyncCompileMode(threads),
        ):
            work()

    # In a context of its own: Triton 3.6 leaves its mode on when a kernel cannot be compiled.
    copy_context().run(compile_all)


def _kind(arg: Any) -> object:
    """An argument as far as it may matter to what is compiled: of a tensor type and alignment."""
    return (arg.dtype, arg.data_ptr() % 16) if isinstance(arg, torch.Tensor) else arg
