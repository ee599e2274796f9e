"""The CPU's side of the handoff: layers of experts that a GPU asks for, through shared memory."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Sequence

from ktops_engine.errors import KtopsError
from ktops_engine.native.load import Matrix, Native, Pool
from ktops_engine.native.structs import (
    HandoffArgs,
    HandoffLayer,
    HandoffLayout,
    HandoffTraffic,
    Status,
)
from ktops_engine.text import text

REFUSED = -1  # KTOPS_HANDOFF_REFUSED, as int32
NUMBER_MASK = 0x7FFFFFFF  # request numbers have 31 bits

Layer = tuple[Matrix, Matrix, Matrix]  # gate, up, down


def block_layout(native: Native, hidden: int, top_k: int, max_tokens: int) -> HandoffLayout:
    """Where things stand in the block that GPU and CPU share, and its size (`ktops.h`).

    Raises KtopsError: native-call (sizes of zero, or far too large).
    """
    layout = HandoffLayout()
    status = native.library.ktops_handoff_layout_of(hidden, top_k, max_tokens, ctypes.byref(layout))
    native.check(status, f"laying out {max_tokens} tokens of {hidden} activations")
    return layout


class HandoffServer:
    """Answers the requests that a GPU writes into the block at `block_ptr` (zeroed, aligned to 64
    bytes, of `block_layout`'s size). The owner keeps block and weights alive.
    """

    def __init__(
        self,
        native: Native,
        pool: Pool,
        layers: Sequence[Layer],
        layout: HandoffLayout,
        block_ptr: int,
        hidden: int,
        top_k: int,
        max_tokens: int,
    ) -> None:
        """Raises KtopsError: native-call (a layer's shapes or types), out-of-memory."""
        self._native = native
        self._pool = pool
        library = native.library
        table = (HandoffLayer * len(layers))(
            *(HandoffLayer(gate.struct, up.struct, down.struct) for gate, up, down in layers)
        )
        args = HandoffArgs(
            table, block_ptr, layout.num_bytes, len(layers), hidden, top_k, max_tokens
        )
        self._handle = ctypes.c_void_p()
        status = library.ktops_handoff_create(ctypes.byref(args), ctypes.byref(self._handle))
        native.check(status, f"preparing {len(layers)} layers for the GPU")
        self._serve = library.ktops_handoff_serve
        release = weakref.finalize(self, library.ktops_handoff_destroy, self._handle)
        release.atexit = False  # the process is about to return it all

    def serve(self, count: int, timeout_seconds: float) -> None:
        """Computes the next `count` requests on the pool, the caller's thread among its threads;
        each may take `timeout_seconds` to come.

        Raises KtopsError, after which every further call fails until `reset`: handoff-timeout (one
        side waited in vain), handoff-cancelled, native-call (an expert or a layer that is not
        there), pool-closed.
        """
        with self._pool.held() as pool:
            status = self._serve(pool, self._handle, count, int(timeout_seconds * 1e9))
        if status == Status.TIMEOUT:
            raise KtopsError(
                "handoff-timeout",
                text(
                    "The GPU asked for no experts for {seconds:g} s; this step is lost.",
                    seconds=timeout_seconds,
                ),
                "ktops doctor",
            )
        if status == Status.GIVEN_UP:
            raise given_up()
        if status == Status.CANCELLED:
            raise KtopsError(
                "handoff-cancelled", text("The CPU's part of this step was cancelled.")
            )
        if status:
            self._native.check(status, f"computing {count} layers for the GPU")

    def cancel(self) -> None:
        """Ends the call of `serve` that runs, or the next one. From any thread."""
        self._native.library.ktops_handoff_cancel(self._handle)

    def reset(self) -> None:
        """Begins anew. Neither side may be at work."""
        self._native.library.ktops_handoff_reset(self._handle)

    @property
    def traffic(self) -> HandoffTraffic:
        """What has been served since the start."""
        found = HandoffTraffic()
        self._native.library.ktops_handoff_get_traffic(self._handle, ctypes.byref(found))
        return found


def given_up() -> KtopsError:
    """The error of a step in which the GPU's patience ended."""
    return KtopsError(
        "handoff-timeout",
        text("The GPU waited in vain for the experts on the CPU; this step is lost."),
        "ktops doctor",
    )
