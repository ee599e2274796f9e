"""What a CPU of a known model offers, to be held against what the system shows of it."""

from __future__ import annotations

from dataclasses import dataclass

from ktops_doctor.host import Host

_AVX512_VNNI = ("AVX-512", "AVX-512 VNNI")
_AMX = (*_AVX512_VNNI, "AMX")
_FLAG_OF = {
    "AVX2": "avx2",
    "AVX-512": "avx512f",
    "AVX-512 VNNI": "avx512_vnni",
    "AMX": "amx_tile",
}


@dataclass(frozen=True)
class CpuModel:
    """The first CPU of /proc/cpuinfo. `generation` is '' for models not in the table, `features`
    is what that generation offers, `flags` is what the system shows."""

    name: str
    generation: str
    features: tuple[str, ...]
    flags: frozenset[str]


@dataclass(frozen=True)
class _Generation:
    vendor: str
    family: int
    models: range
    name: str
    features: tuple[str, ...]


# Family and model numbers as in the vendors' revision guides and the Linux kernel's cpu_device_id
# headers (intel-family.h).
_GENERATIONS = (
    _Generation("GenuineIntel", 6, range(79, 80), "Broadwell-EP", ("AVX2",)),
    _Generation("GenuineIntel", 6, range(85, 86), "Skylake or Cascade Lake", ("AVX2", "AVX-512")),
    _Generation("GenuineIntel", 6, range(106, 109), "Ice Lake-SP", ("AVX2", *_AVX512_VNNI)),
    _Generation("GenuineIntel", 6, range(143, 144), "Sapphire Rapids", ("AVX2", *_AMX)),
    _Generation("GenuineIntel", 6, range(207, 208), "Emerald Rapids", ("AVX2", *_AMX)),
    _Generation("GenuineIntel", 6, range(173, 175), "Granite Rapids", ("AVX2", *_AMX)),
    _Generation("AuthenticAMD", 23, range(0x30), "Zen", ("AVX2",)),
    _Generation("AuthenticAMD", 23, range(0x30, 0x100), "Zen 2", ("AVX2",)),
    _Generation("AuthenticAMD", 25, range(0x10), "Zen 3", ("AVX2",)),
    _Generation("AuthenticAMD", 25, range(0x10, 0x20), "Zen 4", ("AVX2", *_AVX512_VNNI)),
    _Generation("AuthenticAMD", 25, range(0x20, 0x60), "Zen 3", ("AVX2",)),
    _Generation("AuthenticAMD", 25, range(0x60, 0x100), "Zen 4", ("AVX2", *_AVX512_VNNI)),
    _Generation("AuthenticAMD", 26, range(0x100), "Zen 5", ("AVX2", *_AVX512_VNNI)),
)


def identify(host: Host) -> CpuModel:
    """The CPU of this machine."""
    fields: dict[str, str] = {}
    for line in (host.read_text("/proc/cpuinfo") or "").splitlines():
        if not line.strip():
            break  # the first processor is enough: a machine has one kind
        name, _, value = line.partition(":")
        fields[name.strip()] = value.strip()
    generation = _generation(
        fields.get("vendor_id", ""), _int(fields.get("cpu family")), _int(fields.get("model"))
    )
    return CpuModel(
        name=fields.get("model name", ""),
        generation=generation.name if generation else "",
        features=generation.features if generation else (),
        flags=frozenset(fields.get("flags", "").split()),
    )


def missing_features(cpu: CpuModel) -> list[str]:
    """Features the generation has and the system does not show, e.g. ['AVX-512', 'AMX']."""
    return [feature for feature in cpu.features if _FLAG_OF[feature] not in cpu.flags]


def _generation(vendor: str, family: int, model: int) -> _Generation | None:
    for generation in _GENERATIONS:
        same = generation.vendor == vendor and generation.family == family
        if same and model in generation.models:
            return generation
    return None


def _int(text: str | None) -> int:
    return int(text) if text and text.isdigit() else -1
