"""The GPU's side of the handoff: experts on the CPU are asked for and awaited inside a graph.

Both kernels work on the block of `ktops_handoff_layout` (csrc/include/ktops.h) in pinned memory,
which the GPU reaches over PCIe. Flags are written with release and read with acquire at system
scope (PTX ISA, "Memory Consistency Model"); Triton has neither for plain loads and stores, so these
few instructions are written out. Triton's interpreter, which has no assembly, reads a flag once.

What must live on from one replay of a graph to the next is a tensor on the device, `state`:
int32 [3], the number of the last request, whether a step has failed, and the number of the last
answer. After a failure both kernels return at once until the state is zeroed.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ktops_engine.kernels.launch import launch
from ktops_engine.native.handoff import NUMBER_MASK, REFUSED

_NUMBER_MASK = tl.constexpr(NUMBER_MASK)
_REFUSED = tl.constexpr(REFUSED)

# What the programs of `take` read: [tokens, columns], 16 bytes a thread and load.
_TAKE_TOKENS, _TAKE_COLS, _TAKE_WARPS = 4, 1024, 4

# One thread looks, because looks of several at one address of the host's wait for each other, about
# a microsecond each. The others of its program wait at a barrier.
_AWAIT = tl.constexpr("""
{
    .reg .pred is_over;
    .reg .u64 start, now;
    .reg .u32 failed;
    mov.u32 $0, 0xffffffff;
    setp.ne.u32 is_over, $5, 0;
    @is_over bra over;
    ld.relaxed.gpu.global.u32 failed, [$4];
    setp.ne.u32 is_over, failed, 0;
    @is_over bra over;
    mov.u64 start, %globaltimer;
look:
    ld.acquire.sys.global.u32 $0, [$1];
    setp.eq.u32 is_over, $0, $2;
    @is_over bra over;
    setp.eq.u32 is_over, $0, 0xffffffff;
    @is_over bra over;
    mov.u64 now, %globaltimer;
    sub.u64 now, now, start;
    setp.ge.u64 is_over, now, $3;
    @is_over bra over;
    nanosleep.u32 20;
    bra look;
over:
}
""")
_RAISE = tl.constexpr("""
{
    .reg .pred is_first;
    setp.eq.u32 is_first, $3, 0;
    @is_first st.release.sys.global.u32 [$1], $2;
    mov.u32 $0, $2;
}
""")


@triton.jit
def _raise_flag(flag, value, THREADS: tl.constexpr, ON_GPU: tl.constexpr):
    """After the writes of all threads of the program, one of them writes the flag."""
    if ON_GPU:
        tl.debug_barrier()
        threads = tl.arange(0, THREADS)
        tl.inline_asm_elementwise(
            _RAISE, "=r,l,r,r", [flag, value, threads], dtype=tl.int32, is_pure=False, pack=1
        )
    else:
        tl.store(flag, value)


@triton.jit
def _await_flag(flag, number, patience_ns, failed, THREADS: tl.constexpr, ON_GPU: tl.constexpr):
    """The flag once it is `number` or REFUSED, or whatever it is when the time is over; REFUSED at
    once after a failure."""
    if ON_GPU:
        threads = tl.arange(0, THREADS)
        found = tl.inline_asm_elementwise(
            _AWAIT,
            "=&r,l,r,l,l,r",
            [flag, number, patience_ns, failed, threads],
            dtype=tl.int32,
            is_pure=False,
            pack=1,
        )
        tl.debug_barrier()
        return tl.sum(tl.where(threads == 0, found, 0), axis=0)
    else:
        return tl.where(tl.load(failed) == 0, tl.load(flag), _REFUSED)


@triton.jit(do_not_specialize=["layer", "num_tokens"])
def _post_kernel(
    x, expert_ids, expert_weights, slots, layer, num_tokens,
    activations, shared_ids, shared_weights, header, asked, state,
    hidden: tl.constexpr, top_k: tl.constexpr, HAS_SLOTS: tl.constexpr,
    COLS: tl.constexpr, PAIRS: tl.constexpr, THREADS: tl.constexpr, ON_GPU: tl.constexpr,
):  # fmt: skip
    """One program. COLS and PAIRS: powers of two, not below hidden and num_tokens * top_k."""
    if tl.load(state + 1) == 0:
        number = (tl.load(state) + 1) & _NUMBER_MASK
        pairs = tl.arange(0, PAIRS)
        is_pair = pairs < num_tokens * top_k
        ids = tl.load(expert_ids + pairs, mask=is_pair)
        weights = tl.load(expert_weights + pairs, mask=is_pair)
        if HAS_SLOTS:
            slot = tl.load(slots + ids, mask=is_pair & (ids >= 0), other=-1)
            ids = tl.where(slot < 0, ids, -1)
        tl.store(shared_ids + pairs, ids, mask=is_pair)
        tl.store(shared_weights + pairs, weights, mask=is_pair)
        tl.store(header, layer)
        tl.store(header + 1, num_tokens)
        cols = tl.arange(0, COLS)
        for token in range(num_tokens):
            at = token * hidden + cols
            values = tl.load(x + at, mask=cols < hidden)
            tl.store(activations + at, values, mask=cols < hidden)
        _raise_flag(asked, number, THREADS, ON_GPU)
        tl.store(state, number)


@triton.jit(do_not_specialize=["num_tokens"])
def _take_kernel(
    residual, result, done, given_up, state, patience_ns, num_tokens,
    hidden: tl.constexpr,
    TOKENS: tl.constexpr, COLS: tl.constexpr, THREADS: tl.constexpr,
    IS_RELAYED: tl.constexpr, ON_GPU: tl.constexpr,
):  # fmt: skip
    """Programs [columns, tokens]. The first one waits for the CPU, the others for the first."""
    cols = tl.program_id(0) * COLS + tl.arange(0, COLS)[None, :]
    tokens = tl.program_id(1) * TOKENS + tl.arange(0, TOKENS)[:, None]
    mask = (cols < hidden) & (tokens < num_tokens)
    at = tokens * hidden + cols
    total = tl.load(residual + at, mask=mask)
    number = tl.load(state)
    failed = state + 1
    relay = state + 2
    is_first = tl.program_id(0) + tl.program_id(1) == 0
    flag = tl.where(is_first, done, relay) if IS_RELAYED else done
    found = _await_flag(flag, number, tl.load(patience_ns), failed, THREADS, ON_GPU)
    if IS_RELAYED:  # noqa: SIM102 (known when Triton compiles, unlike the other)
        if is_first:
            _raise_flag(relay, tl.where(found == number, found, _REFUSED), THREADS, ON_GPU)
    if found == number:
        # The flag was acquired: plain loads see what was written before it.
        total += tl.load(result + at, mask=mask)
        tl.store(residual + at, total, mask=mask)
    else:
        tl.store(failed, 1)
        _raise_flag(given_up, 1, THREADS, ON_GPU)


def post(
    x: torch.Tensor,
    expert_ids: torch.Tensor,
    expert_weights: torch.Tensor,
    layer: int,
    block: dict[str, torch.Tensor],
    state: torch.Tensor,
    slots: torch.Tensor | None = None,
) -> None:
    """Writes a request into the block and raises `asked` to its number.

    x: bfloat16 [tokens, hidden]; expert_ids: int32 [tokens, top_k], negative ones are not for the
    CPU; expert_weights: float32 [tokens, top_k]; all contiguous. `block`: the parts by name, typed
    (moe/handoff.py). slots: int32 [experts], where an expert lies on the GPU, which computes it
    then; negative: not there.
    """
    num_tokens, hidden = x.shape
    top_k = expert_ids.shape[1]
    cols = triton.next_power_of_2(hidden)
    num_warps = min(max(cols // 256, 1), 32)
    launch(
        _post_kernel, (1,),
        x, expert_ids, expert_weights, expert_ids if slots is None else slots, layer, num_tokens,
        block["activations"], block["expert_ids"], block["expert_weights"],
        block["layer"], block["asked"], state,
        hidden, top_k, slots is not None,
        COLS=cols, PAIRS=triton.next_power_of_2(num_tokens * top_k),
        THREADS=32 * num_warps, ON_GPU=x.is_cuda,
        num_warps=num_warps,
    )  # fmt: skip


def take(
    residual: torch.Tensor,
    block: dict[str, torch.Tensor],
    state: torch.Tensor,
    patience_ns: torch.Tensor,
) -> None:
    """Waits for the answer to the last `post` and adds it to `residual`.

    residual: float32 [tokens, hidden], contiguous, as many tokens as were posted; patience_ns:
    int64 [1]. When the time is over, or the CPU refuses, nothing is added, the state says so, and
    so does `given_up` in the block.
    """
    num_tokens, hidden = residual.shape
    tokens = min(triton.next_power_of_2(num_tokens), _TAKE_TOKENS)
    grid = (triton.cdiv(hidden, _TAKE_COLS), triton.cdiv(num_tokens, tokens))
    launch(
        _take_kernel, grid,
        residual, block["result"], block["done"], block["given_up"], state, patience_ns, num_tokens,
        hidden,
        TOKENS=tokens, COLS=_TAKE_COLS, THREADS=32 * _TAKE_WARPS,
        IS_RELAYED=grid != (1, 1) and residual.is_cuda, ON_GPU=residual.is_cuda,
        num_warps=_TAKE_WARPS,
    )  # fmt: skip
