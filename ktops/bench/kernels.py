"""The expert kernels alone, at one layer's shape: the request, the run, and the answer."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, replace

from ktops.launch.nodes import show_nodes
from ktops.output import Output
from ktops.units import format_bytes
from ktops_engine.bench.layer import ExpertLayer
from ktops_engine.bench.shapes import LayerShape, parse_shape
from ktops_engine.bench.timing import LayerTiming, pinned, time_layer
from ktops_engine.errors import EXIT_NOT_ENOUGH, EXIT_USAGE, KtopsError
from ktops_engine.machine import MachineFacts
from ktops_engine.native.build import BuildInfo, build_native
from ktops_engine.native.load import Native, load_native
from ktops_engine.node_memory import NodeShare
from ktops_engine.nodes import NumaMode, thread_nodes
from ktops_engine.text import Text, joined, text

COMMAND = "ktops bench kernels"
SECONDS_PER_FIGURE = 0.6
SCRATCH_BYTES = 512 << 20  # of the kernels, of this process, and of the check in float64
MAX_TOKENS = 16384


@dataclass(frozen=True)
class Request:
    """What to measure: `shape_name` as it was given, `isa` "" for the best there is, `numa` as in
    EngineConfig."""

    shape_name: str
    shape: LayerShape
    tokens: tuple[int, ...]
    threads: int
    isa: str = ""
    numa: NumaMode = "auto"

    @property
    def needed_bytes(self) -> int:
        """RAM while it runs: the weights, and activations in and out of the longest call."""
        activations = 2 * 4 * max(self.tokens) * self.shape.hidden_size
        return self.shape.layer_bytes + activations + SCRATCH_BYTES


@dataclass(frozen=True)
class Measured:
    """The figures of a request, the instruction set that they were made with, and where the weights
    lay: empty when they were not shared out over NUMA nodes."""

    request: Request
    isa: str
    timings: tuple[LayerTiming, ...]
    node_shares: tuple[NodeShare, ...] = ()


def make_request(
    machine: MachineFacts,
    shape_name: str,
    tokens: str,
    *,
    threads: int | None,
    num_experts: int | None,
    isa: str | None,
    numa: NumaMode = "auto",
) -> Request:
    """A request that this machine can serve.

    Raises KtopsError: invalid-shape, usage (status 2), not-enough-memory (status 4).
    """
    shape = parse_shape(shape_name)
    if num_experts is not None:
        if num_experts < shape.num_experts_per_tok:
            raise _usage(
                text(
                    "--experts {given}: a token takes {top_k} different ones",
                    given=num_experts,
                    top_k=shape.num_experts_per_tok,
                ),
                f"{COMMAND} --shape {shape_name} --experts {shape.num_experts_per_tok}",
            )
        shape = replace(shape, num_experts=num_experts)
    cores = len(machine.cpus)
    if threads is not None and not 1 <= threads <= cores:
        raise _usage(
            text(
                "--threads {given}: this process may use 1 to {cores}", given=threads, cores=cores
            ),
            f"{COMMAND} --threads {cores}",
        )
    request = Request(shape_name, shape, _token_counts(tokens), threads or cores, isa or "", numa)
    _refuse_large(request, machine)
    return request


def _token_counts(given: str) -> tuple[int, ...]:
    words = given.split(",")
    if not all(word.isdecimal() and 1 <= int(word) <= MAX_TOKENS for word in words):
        raise _usage(
            text("--tokens {given}: numbers from 1 to {most}, with commas between", given=given,
                 most=MAX_TOKENS),
            f"{COMMAND} --tokens 1,8,512",
        )  # fmt: skip
    return tuple(map(int, words))


def _usage(message: Text, hint: str) -> KtopsError:
    return KtopsError("usage", message, hint, exit_status=EXIT_USAGE)


def _refuse_large(request: Request, machine: MachineFacts) -> None:
    available = machine.available_ram_bytes
    if request.needed_bytes <= available:
        return
    shape = request.shape
    rest = available - (request.needed_bytes - shape.layer_bytes)
    fitting = rest // shape.expert_bytes
    hint = f"{COMMAND} --shape {request.shape_name} --experts {fitting}"
    raise KtopsError(
        "not-enough-memory",
        text(
            "{experts} experts of {each} need {needed} of RAM, and {available} are free",
            experts=shape.num_experts,
            each=format_bytes(shape.expert_bytes),
            needed=format_bytes(request.needed_bytes),
            available=format_bytes(available),
        ),
        hint if fitting >= shape.num_experts_per_tok else f"{COMMAND} --shape demo",
        exit_status=EXIT_NOT_ENOUGH,
    )


def measure(request: Request, machine: MachineFacts, output: Output) -> Measured:
    """Build the kernels where they are not, then time every number of tokens.

    Raises KtopsError as building and loading do, isa-not-available and numa-not-built (status 2).
    """
    info = build_native(on_line=output.note)
    cpus = machine.cpus[: request.threads]
    nodes = thread_nodes(request.numa, cpus, is_built=info.numa)
    native = _load(request, info)
    output.stage("layer", _described(request, native.isa))
    with (
        native.create_pool(cpus, nodes) as pool,
        ExpertLayer(native, pool, request.shape) as layer,
        pinned(cpus[0]),
    ):
        shares = layer.node_shares(pool)
        show_nodes(output, shares)
        timings = tuple(
            time_layer(pool, layer, num_tokens, seconds=SECONDS_PER_FIGURE)
            for num_tokens in request.tokens
        )
    return Measured(request, native.isa, timings, shares)


def _load(request: Request, info: BuildInfo) -> Native:
    if request.isa:
        os.environ["KTOPS_ISA"] = request.isa  # the library looks there
    native = load_native(info)
    if request.isa not in ("", native.isa):
        raise KtopsError(
            "isa-not-available",
            text(
                "--isa {asked}: this CPU and this build run {available}",
                asked=request.isa,
                available=", ".join(native.isa_available),
            ),
            f"{COMMAND} --isa {native.isa}",
            exit_status=EXIT_USAGE,
        )
    return native


def _described(request: Request, isa: str) -> Text:
    shape, threads = request.shape, request.threads
    return joined(
        [
            text("{size} of weights", size=format_bytes(shape.layer_bytes)),
            text(
                "{experts} experts, {top_k} a token",
                experts=shape.num_experts,
                top_k=shape.num_experts_per_tok,
            ),
            f"{shape.gate_type.name}, {shape.down_type.name}",
            text("one thread") if threads == 1 else text("{threads} threads", threads=threads),
            isa,
        ]
    )


def document(measured: Measured) -> dict[str, object]:
    """The answer as JSON: rates in bytes/s and FLOP/s, times in seconds."""
    request = measured.request
    shape = asdict(request.shape)
    return {
        "shape": {
            **shape,
            "gate_type": request.shape.gate_type.name,
            "down_type": request.shape.down_type.name,
        },
        "layer_bytes": request.shape.layer_bytes,
        "threads": request.threads,
        "isa": measured.isa,
        "nodes": [asdict(share) for share in measured.node_shares],
        "results": [
            {
                "tokens": timing.num_tokens,
                "calls": timing.num_calls,
                "seconds": timing.seconds,
                "touched_bytes_per_s": round(timing.touched_rate),
                "read_bytes_per_s": None if timing.read_rate is None else round(timing.read_rate),
                "share": timing.share,
                "flops_per_s": round(timing.flops),
                "relative_l2": timing.relative_l2,
            }
            for timing in measured.timings
        ],
    }


def lines(measured: Measured, output: Output) -> list[str]:
    """The answer as a table."""
    header = (
        text("tokens"),
        "ms",
        "GB/s",
        text("read GB/s"),
        text("share"),
        "TFLOP/s",
        text("rel. L2"),
    )
    return output.table([_row(timing) for timing in measured.timings], header)


def _row(timing: LayerTiming) -> list[str]:
    return [
        str(timing.num_tokens),
        f"{1e3 * timing.seconds:.3f}",
        f"{timing.touched_rate / 1e9:.1f}",
        "-" if timing.read_rate is None else f"{timing.read_rate / 1e9:.1f}",
        "-" if timing.share is None else f"{timing.share:.2f}",
        f"{timing.flops / 1e12:.3f}",
        f"{timing.relative_l2:.1e}",
    ]
