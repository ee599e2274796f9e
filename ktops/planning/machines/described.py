"""The language of `--machine`: '2x8460Y+,1024GiB,L40S' or 'cores=32,ram=512GiB,bandwidth=300GB/s'.

Parts are separated by commas: a processor or GPU by name, with a count before it ('2x', '8x'); an
amount of RAM; 'key=value' for what has no name, or to overrule a datasheet; 'measured' when the
bandwidth was measured and is not a datasheet's. A preset's name stands alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from ktops.planning.machines.datasheet import CpuSheet, Datasheet, load_datasheet
from ktops.units import parse_amount
from ktops_engine.errors import EXIT_USAGE, KtopsError
from ktops_engine.machine import GpuFacts, MachineFacts
from ktops_engine.plan.rates import CORE_READ_BYTES
from ktops_engine.text import Text, text

EXAMPLE = "cores=32,ram=512GiB,bandwidth=300GB/s"
EXAMPLE_GPU = "vram=24GiB,gpu-bandwidth=1000GB/s,pcie=25GB/s,tflops=165"
# Of a described machine's RAM, what its system leaves to a model.
AVAILABLE_SHARE = 0.98
_COUNTED = re.compile(r"(?:(\d+)\s*[x*]\s*)?(.+)", re.IGNORECASE)
_MAX_COUNT = 64
_MAX_CORES = 4096


@dataclass
class _Parts:
    """What was read so far. Rates in bytes/s."""

    cpu: CpuSheet | None = None
    sockets: int = 1
    gpus: list[GpuFacts] = field(default_factory=list)
    values: dict[str, float] = field(default_factory=dict)
    isa: str | None = None
    is_measured: bool = False


def machine_named(words: str) -> MachineFacts:
    """The machine that `words` describe.

    Raises KtopsError (status 2): "unknown-machine" for a name that is in no table, with the
    closest one; "invalid-machine" for a number that is none, or a part that is missing.
    """
    sheet = load_datasheet()
    preset = sheet.presets.get(words.strip().lower())
    if preset is not None:
        return replace(_described(preset.machine, sheet), name=preset.title)
    return _described(words, sheet)


def _described(words: str, sheet: Datasheet) -> MachineFacts:
    parts = _Parts()
    for word in (part.strip() for part in words.split(",")):
        if word:
            _read_part(word, parts, sheet)
    cores = parts.values.get("cores", parts.cpu.cores * parts.sockets if parts.cpu else 0)
    ram = parts.values.get("ram", 0)
    if not cores:
        raise _invalid(text("{machine} names no processor", machine=repr(words)))
    if not ram:
        raise _invalid(text("{machine} names no amount of RAM", machine=repr(words)))
    from_sheet = parts.cpu.read_bandwidth * parts.sockets if parts.cpu else None
    return MachineFacts(
        cpus=tuple(range(int(cores))),
        total_ram_bytes=int(ram),
        available_ram_bytes=int(ram * AVAILABLE_SHARE),
        gpus=_gpus(parts, words),
        num_nodes=parts.sockets,
        read_bandwidth=parts.values.get("bandwidth", from_sheet),
        bandwidth_is_measured=parts.is_measured,
        isa=parts.isa or (parts.cpu.isa if parts.cpu else ""),
        name=words.strip(),
    )


def _read_part(word: str, parts: _Parts, sheet: Datasheet) -> None:
    key, equals, value = (piece.strip() for piece in word.partition("="))
    if equals:
        _read_value(key.lower(), value, parts)
        return
    if (amount := parse_amount(word)) is not None:
        parts.values["ram"] = amount
        return
    if word.lower() == "measured":
        parts.is_measured = True
        return
    counted = _COUNTED.fullmatch(word)
    count = int(counted[1] or 1) if counted else 1
    name = counted[2] if counted else word
    if not 1 <= count <= _MAX_COUNT:
        raise _invalid(
            text("{word}: the count must be 1 to {most}", word=repr(word), most=_MAX_COUNT)
        )
    if (cpu := sheet.cpu(name)) is not None:
        if parts.cpu is not None:
            raise _invalid(
                text("a machine has one kind of processor; {word} is another", word=name)
            )
        parts.cpu, parts.sockets = cpu, count
    elif (gpu := sheet.gpu(name)) is not None:
        parts.gpus += [gpu] * count
    else:
        raise _unknown(name, sheet)


def _read_value(key: str, value: str, parts: _Parts) -> None:
    if key == "isa":
        if value.lower() not in CORE_READ_BYTES:
            known = ", ".join(CORE_READ_BYTES)
            raise _invalid(text("isa={value} must be one of {known}", value=value, known=known))
        parts.isa = value.lower()
        return
    if key not in _KEYS:
        known = ", ".join([*_KEYS, "isa"])
        raise _invalid(text("{key} is no property of a machine: {known}", key=key, known=known))
    number = _KEYS[key](value)
    if number is None or number <= 0:
        raise _invalid(
            text("{key}={value} is not like {example}", key=key, value=value, example=_LIKE[key])
        )
    parts.values[key] = number


def _cores(value: str) -> float | None:
    return float(value) if value.isdigit() and int(value) <= _MAX_CORES else None


def _rate(value: str) -> float | None:
    return parse_amount(value, is_rate=True)


def _number(value: str) -> float | None:
    return float(value) if re.fullmatch(r"\d+(\.\d+)?", value) else None


_KEYS: Mapping[str, Callable[[str], float | None]] = MappingProxyType(
    {
        "cores": _cores,
        "ram": parse_amount,
        "bandwidth": _rate,
        "vram": parse_amount,
        "gpu-bandwidth": _rate,
        "pcie": _rate,
        "tflops": _number,
    }
)
_LIKE: Mapping[str, str] = MappingProxyType(
    dict(part.split("=") for part in f"{EXAMPLE},{EXAMPLE_GPU}".split(","))
)


def _gpus(parts: _Parts, words: str) -> tuple[GpuFacts, ...]:
    """The GPUs named, overruled by what was given as numbers; one of numbers alone with 'vram='."""
    given = {key: parts.values.get(key) for key in ("vram", "gpu-bandwidth", "pcie", "tflops")}
    if not any(given.values()):
        return tuple(parts.gpus)
    gpus = parts.gpus
    if not gpus:
        if given["vram"] is None:
            raise _invalid(
                text("{machine} gives rates of a GPU without vram=", machine=repr(words))
            )
        gpus = [GpuFacts("GPU", 0, 0)]
    return tuple(_overruled(gpu, given) for gpu in gpus)


def _overruled(gpu: GpuFacts, given: Mapping[str, float | None]) -> GpuFacts:
    vram, tflops = given["vram"], given["tflops"]
    return GpuFacts(
        name=gpu.name,
        total_bytes=int(vram) if vram else gpu.total_bytes,
        free_bytes=int(vram) if vram else gpu.free_bytes,
        read_bandwidth=given["gpu-bandwidth"] or gpu.read_bandwidth,
        pcie_bandwidth=given["pcie"] or gpu.pcie_bandwidth,
        bf16_flops=tflops * 1e12 if tflops else gpu.bf16_flops,
    )


def _unknown(name: str, sheet: Datasheet) -> KtopsError:
    close = sheet.closest(name)
    if close is None:
        message = text("ktops knows no processor, GPU or machine {name}", name=repr(name))
    else:
        message = text(
            "ktops knows no processor, GPU or machine {name}; did you mean {close}?",
            name=repr(name),
            close=repr(close),
        )
    return KtopsError("unknown-machine", message, _numbers_hint(), exit_status=EXIT_USAGE)


def _invalid(message: Text) -> KtopsError:
    return KtopsError("invalid-machine", message, _numbers_hint(), exit_status=EXIT_USAGE)


def _numbers_hint() -> Text:
    return text(
        'ktops plan MODEL --machine "{example},{gpu}"   (any machine, by its numbers)',
        example=EXAMPLE,
        gpu=EXAMPLE_GPU,
    )
