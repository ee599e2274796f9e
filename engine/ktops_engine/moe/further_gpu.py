"""A GPU beside the first one, and what passes between the two for a few tokens.

The first GPU writes tokens and the router's choice straight into the memory of the other one, whose
last kernel writes the result straight into the first one's: over NVLink or PCIe, without a copy in
between. Where they cannot reach each other's memory, both go through pinned RAM. Streams wait for
each other by events, and every buffer is there from the start, so that all of it can be captured in
a graph of the first GPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ktops_engine.kernels.between_gpus import send
from ktops_engine.kernels.matrix import MAX_FEW_TOKENS
from ktops_engine.kernels.routing import Routing
from ktops_engine.moe.gpu_experts import ResidentExperts


class FurtherGpu:
    """One request at a time: `begin`, whatever the first GPU does meanwhile, then `take`.

    With devices that are no GPUs, everything happens at once, in order.
    """

    def __init__(
        self,
        first: torch.device,
        device: torch.device,
        hidden: int,
        intermediate: int,
        top_k: int,
        *,
        is_direct: bool | None = None,
    ) -> None:
        """`intermediate`: of a routed expert. `is_direct`: whether the two reach each other's
        memory; found out when None."""
        self.device = device
        self._first = first
        self._on_gpu = device.type == "cuda"
        self._hidden, self._top_k = hidden, top_k
        if is_direct is None:
            is_direct = _writes_arrive(first, device) and _writes_arrive(device, first)
        self.is_direct = is_direct
        request_bytes = MAX_FEW_TOKENS * self._token_bytes
        self._request = torch.empty(request_bytes, dtype=torch.uint8, device=device)
        self._inner = torch.empty(
            MAX_FEW_TOKENS * top_k, intermediate, dtype=torch.bfloat16, device=device
        )
        self._result = torch.empty(MAX_FEW_TOKENS, hidden, device=first)
        self._sent, self._answer = self._request, self._result
        if not is_direct:
            self._sent = torch.empty(request_bytes, dtype=torch.uint8, pin_memory=self._on_gpu)
            self._answer = torch.empty(MAX_FEW_TOKENS, hidden, pin_memory=self._on_gpu)
        if self._on_gpu:
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            self._asked = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._done = torch.cuda.Event()  # type: ignore[no-untyped-call]

    @contextmanager
    def working(self) -> Iterator[None]:
        """Within, the GPU's own stream and device are the current ones, behind all that the first
        GPU has queued so far."""
        if not self._on_gpu:
            yield
            return
        self._asked.record(torch.cuda.current_stream(self._first))
        self._stream.wait_event(self._asked)
        with torch.cuda.stream(self._stream):
            yield
            self._done.record(self._stream)

    def join(self) -> None:
        """The first GPU goes on when all that was queued while `working` is done."""
        if self._on_gpu:
            torch.cuda.current_stream(self._first).wait_event(self._done)

    def begin(self, experts: ResidentExperts, routing: Routing) -> None:
        """Queue the products of a few tokens, on the first GPU, with `experts`, which are on this
        one. Raises ValueError for more than `MAX_FEW_TOKENS` tokens."""
        num_tokens = routing.h.shape[0]
        if num_tokens > MAX_FEW_TOKENS:
            raise ValueError(f"{num_tokens} tokens, more than {MAX_FEW_TOKENS}")
        send(routing, self._parts(self._sent, num_tokens))
        with self.working():
            if not self.is_direct:
                size = num_tokens * self._token_bytes
                self._request[:size].copy_(self._sent[:size], non_blocking=True)
            request = self._parts(self._request, num_tokens)
            experts.write_tokens(request, self._answer[:num_tokens], self._inner)

    def take(self, x: torch.Tensor) -> None:
        """Await the result and add it to x: [tokens, hidden] float32 on the first GPU, as many
        tokens as `begin` had."""
        self.join()
        result = self._result[: x.shape[0]]
        if not self.is_direct:
            result.copy_(self._answer[: x.shape[0]], non_blocking=True)
        x += result

    @property
    def _token_bytes(self) -> int:
        """Of a token in bfloat16, its experts' numbers and their weights."""
        return 2 * self._hidden + (4 + 4) * self._top_k

    def _parts(self, block: torch.Tensor, num_tokens: int) -> Routing:
        """Tokens, numbers and weights, one after the other without gaps."""
        sizes = [2 * self._hidden, 4 * self._top_k, 4 * self._top_k]
        h, ids, weights = torch.split(
            block[: num_tokens * self._token_bytes], [num_tokens * size for size in sizes]
        )
        return Routing(
            h.view(torch.bfloat16).view(num_tokens, -1),
            ids.view(torch.int32).view(num_tokens, -1),
            weights.view(torch.float32).view(num_tokens, -1),
        )


def _writes_arrive(source: torch.device, target: torch.device) -> bool:
    """Whether what kernels on `source` write into the memory of `target` is there afterwards. The
    driver's word alone is not enough: on some machines such writes get lost on the way."""
    if source.type != "cuda":
        return True
    numbers = source.index or 0, target.index or 0  # without one, it is the first
    if numbers[0] != numbers[1] and not torch.cuda.can_device_access_peer(*numbers):
        return False
    sent = Routing(
        torch.randn(1, 64, device=source).bfloat16(),
        torch.arange(1, 9, dtype=torch.int32, device=source).view(1, 8),
        torch.rand(1, 8, device=source),
    )
    there = Routing(*(part.to(target) for part in sent))  # with which torch opens the way
    for part in there:
        part.zero_()
    torch.cuda.synchronize(target)
    with torch.cuda.device(source):
        send(sent, there)
        torch.cuda.synchronize(source)
    return all(
        torch.equal(ours.cpu(), theirs.cpu()) for ours, theirs in zip(sent, there, strict=True)
    )
