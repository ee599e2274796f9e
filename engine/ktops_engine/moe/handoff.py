"""Experts on the CPU for layers on a GPU: asked for and awaited by kernels, served by the pool."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ktops_engine.kernels import handoff as kernels
from ktops_engine.kernels.matrix import MAX_FEW_TOKENS
from ktops_engine.kernels.routing import Routing
from ktops_engine.native.handoff import HandoffServer, Layer, block_layout, given_up
from ktops_engine.native.load import Native, Pool
from ktops_engine.stats import ExpertTraffic

GPU_PATIENCE_SECONDS = 10.0
CPU_PATIENCE_SECONDS = 60.0

# The parts of the block by name, with their types and how many of them there are.
_FLAGS = {"asked": 1, "layer": 2, "given_up": 1, "done": 1}


class Handoff:
    """One request at a time: `post` and `take` launch kernels, `serve` computes in between.

    A step on a stream is post, what the GPU does meanwhile, take, for each layer with experts on
    the CPU; captured in a graph or not. The host calls `serve` with the number of posts after it
    has launched them (eager, on the CPU: after each post), waits for the stream, then calls
    `check`. A step that fails is lost; `reset` makes the next one work.
    """

    def __init__(
        self,
        native: Native,
        pool: Pool,
        layers: Sequence[Layer],
        hidden: int,
        top_k: int,
        device: torch.device,
    ) -> None:
        """`layers`: gate, up and down of each, kept alive by the owner.

        Raises KtopsError: native-call (shapes or types of a layer), out-of-memory.
        """
        layout = block_layout(native, hidden, top_k, MAX_FEW_TOKENS)
        # A cache line more, because torch promises no alignment.
        on_gpu = device.type == "cuda"
        memory = torch.zeros(layout.num_bytes + 64, dtype=torch.uint8, pin_memory=on_gpu)
        block = memory[-memory.data_ptr() % 64 :][: layout.num_bytes]

        def part(name: str, dtype: torch.dtype, count: int) -> torch.Tensor:
            start = getattr(layout, name)
            return block[start : start + count * dtype.itemsize].view(dtype)

        self._block = {name: part(name, torch.int32, count) for name, count in _FLAGS.items()}
        pairs, values = MAX_FEW_TOKENS * top_k, MAX_FEW_TOKENS * hidden
        self._block["activations"] = part("activations", torch.bfloat16, values)
        self._block["expert_ids"] = part("expert_ids", torch.int32, pairs)
        self._block["expert_weights"] = part("expert_weights", torch.float32, pairs)
        self._block["result"] = part("result", torch.float32, values)
        self._given_up = self._block["given_up"].numpy()
        self._state = torch.zeros(3, dtype=torch.int32, device=device)
        self._patience_ns = torch.empty(1, dtype=torch.int64, device=device)
        self.set_patience(GPU_PATIENCE_SECONDS)
        self._device = device
        self._hidden, self._top_k = hidden, top_k
        self.num_layers = len(layers)
        self._server = HandoffServer(
            native, pool, layers, layout, block.data_ptr(), hidden, top_k, MAX_FEW_TOKENS
        )

    def post(self, layer: int, routing: Routing, slots: torch.Tensor | None = None) -> None:
        """Asks for experts of `layer` (an index into `layers`).

        slots: int32 [experts]; those with one that is not negative are not for the CPU. Raises
        ValueError for other shapes and types than those of `Routing`.
        """
        h, expert_ids, expert_weights = routing
        num_tokens = h.shape[0]
        if not 0 <= layer < self.num_layers or not 1 <= num_tokens <= MAX_FEW_TOKENS:
            raise ValueError(f"no layer {layer}, or too many tokens: {num_tokens}")
        self._check("h", h, num_tokens, self._hidden, torch.bfloat16)
        self._check("expert_ids", expert_ids, num_tokens, self._top_k, torch.int32)
        self._check("expert_weights", expert_weights, num_tokens, self._top_k, torch.float32)
        kernels.post(h, expert_ids, expert_weights, layer, self._block, self._state, slots)

    def take(self, residual: torch.Tensor) -> None:
        """Awaits the answer to the last `post` and adds it to residual, float32 [tokens, hidden].
        Adds nothing when the step fails.

        Raises ValueError for anything else.
        """
        self._check("residual", residual, residual.shape[0], self._hidden, torch.float32)
        kernels.take(residual, self._block, self._state, self._patience_ns)

    def serve(self, count: int, timeout_seconds: float = CPU_PATIENCE_SECONDS) -> None:
        """Computes the next `count` requests; each may take `timeout_seconds` to come.

        Raises KtopsError, when the step is lost: handoff-timeout, handoff-cancelled, native-call,
        pool-closed. The GPU is told, so that it does not wait in vain.
        """
        self._server.serve(count, timeout_seconds)

    def cancel(self) -> None:
        """Ends the call of `serve` that runs, or the next one. From any thread."""
        self._server.cancel()

    @property
    def failed(self) -> bool:
        """Whether a `take` added nothing. Look after the stream has done its work."""
        return bool(self._given_up[0])

    def check(self) -> None:
        """Raises KtopsError handoff-timeout when the step, which the stream has done, failed."""
        if self.failed:
            raise given_up()

    def reset(self) -> None:
        """After a failure: the next step works. Waits for the device; `serve` must have ended."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        self._state.zero_()
        self._server.reset()
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def set_patience(self, seconds: float) -> None:
        """How long a `take` waits, also in graphs that are captured already."""
        self._patience_ns.fill_(int(seconds * 1e9))

    @property
    def traffic(self) -> ExpertTraffic:
        """Bytes of experts the CPU has read for the GPU, and the seconds it took."""
        total = self._server.traffic
        return ExpertTraffic(total.num_bytes, total.compute_ns * 1e-9)

    def _check(self, name: str, x: torch.Tensor, rows: int, cols: int, dtype: torch.dtype) -> None:
        if x.shape != (rows, cols) or x.dtype != dtype or not x.is_contiguous():
            raise ValueError(
                f"{name}: expected contiguous [{rows}, {cols}] {dtype}, "
                f"got {tuple(x.shape)} {x.dtype}"
            )
