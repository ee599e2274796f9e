"""A machine that was written down: answers come from one JSON document, none from this machine."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ktops_doctor.elf import ElfError, ElfVersions
from ktops_doctor.host import (
    COMMAND_TIME_LIMIT,
    REACH_TIME_LIMIT,
    CommandOutput,
    Disk,
    Host,
    Platform,
    PortState,
    ProbeOutput,
    PythonFacts,
    Reach,
    Stage,
)
from ktops_doctor.topology import parse_cpu_list


class RecordedHost:
    """Answers a `Host`'s questions from `record`, whose keys are

    files {path: text}, elf {path: {needs, defines} or {error}}, env, programs {name: path},
    commands {line: CommandOutput}, probes {name and arguments: ProbeOutput}, platform, python,
    packages {name: version}, requirements {name: [..]}, cpus_allowed "0-63",
    limits {name: number, absent when unlimited}, ports {"address:port": PortState, absent when
    free}, reach {url: Reach}, disks {path: Disk}: the nearest path above the one asked for answers.
    What is absent is missing on the machine.
    """

    def __init__(self, record: Mapping[str, Any]) -> None:
        self._record = record
        self._files: Mapping[str, str] = record.get("files", {})

    @classmethod
    def load(cls, path: Path) -> RecordedHost:
        """The host that `RecordingHost.save` wrote."""
        return cls(json.loads(path.read_text(encoding="utf-8")))

    def _answer(self, kind: str, key: str) -> Any:
        return self._record.get(kind, {}).get(key)

    def read_text(self, path: str) -> str | None:
        return self._files.get(path)

    def list_dir(self, path: str) -> tuple[str, ...]:
        prefix = path.rstrip("/") + "/"
        below = (name.removeprefix(prefix) for name in self._files if name.startswith(prefix))
        return tuple(sorted({name.split("/", 1)[0] for name in below}))

    def exists(self, path: str) -> bool:
        known = path in self._files or self._answer("elf", path) is not None
        return known or bool(self.list_dir(path))

    def elf(self, path: str) -> ElfVersions | None:
        answer = self._answer("elf", path)
        if answer is None:
            return None
        if "error" in answer:
            raise ElfError(answer["error"])
        needs = {library: frozenset(names) for library, names in answer.get("needs", {}).items()}
        return ElfVersions(needs, frozenset(answer.get("defines", ())))

    def env(self, name: str) -> str:
        return self._answer("env", name) or ""

    def is_set(self, name: str) -> bool:
        return self._answer("env", name) is not None

    def which(self, program: str) -> str | None:
        found: str | None = self._answer("programs", program)
        return found

    def run(self, *command: str, time_limit: float = COMMAND_TIME_LIMIT) -> CommandOutput:
        answer = self._answer("commands", " ".join(command))
        return CommandOutput(**answer) if answer else CommandOutput(None, stderr="not found")

    def probe(
        self,
        name: str,
        *arguments: str,
        time_limit: float = COMMAND_TIME_LIMIT,
        patience: float | None = None,
    ) -> ProbeOutput:
        answer = self._answer("probes", " ".join((name, *arguments)))
        return ProbeOutput(**answer) if answer else ProbeOutput(error="not recorded")

    def platform(self) -> Platform:
        return Platform(**self._record["platform"])

    def python(self) -> PythonFacts:
        facts = dict(self._record["python"])
        return PythonFacts(version=tuple(facts.pop("version")), **facts)

    def package_version(self, name: str) -> str | None:
        version: str | None = self._answer("packages", name)
        return version

    def requirements(self, name: str) -> tuple[str, ...]:
        return tuple(self._answer("requirements", name) or ())

    def cpus_allowed(self) -> frozenset[int]:
        return frozenset(parse_cpu_list(self._record["cpus_allowed"]))

    def soft_limit(self, name: str) -> int | None:
        limit: int | None = self._answer("limits", name)
        return limit

    def disk(self, path: str) -> Disk | None:
        home = self.env("HOME") or "/root"
        absolute = home + path[1:] if path.startswith("~") else path
        disks = self._record.get("disks", {})
        above = [p for p in disks if f"{absolute}/".startswith(f"{p.rstrip('/')}/")]
        return Disk(**disks[max(above, key=len)]) if above else None

    def port(self, address: str, port: int) -> PortState:
        answer = self._answer("ports", f"{address}:{port}")
        return PortState(**answer) if answer else PortState(True)

    def reach(self, url: str, proxy: str = "", time_limit: float = REACH_TIME_LIMIT) -> Reach:
        answer = self._answer("reach", url)
        if answer is None:
            return Reach(Stage.NAME, "Name or service not known")
        return Reach(**{**answer, "stage": Stage(answer["stage"])})


class RecordingHost:
    """Passes questions on to another host and keeps what it said, to be replayed elsewhere."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._record: dict[str, Any] = {}

    def save(self, path: Path) -> None:
        """Write everything asked so far as a `RecordedHost` document."""
        path.write_text(json.dumps(self._record, indent=1, sort_keys=True) + "\n", encoding="utf-8")

    def _keep(self, kind: str, key: str, answer: Any) -> None:
        if answer is not None:
            self._record.setdefault(kind, {})[key] = answer

    def read_text(self, path: str) -> str | None:
        text = self._host.read_text(path)
        kept = None if text is None else without_secrets(path.rpartition("/")[2], text)
        self._keep("files", path, kept)
        return text

    def list_dir(self, path: str) -> tuple[str, ...]:
        names = self._host.list_dir(path)
        for name in names:  # a name alone keeps the listing; the text follows when it is read
            self._record.setdefault("files", {}).setdefault(f"{path.rstrip('/')}/{name}", "")
        return names

    def exists(self, path: str) -> bool:
        found = self._host.exists(path)
        if found:
            self._record.setdefault("files", {}).setdefault(path, "")
        return found

    def elf(self, path: str) -> ElfVersions | None:
        try:
            versions = self._host.elf(path)
        except ElfError as error:
            self._keep("elf", path, {"error": str(error)})
            raise
        if versions is not None:
            needs = {library: sorted(names) for library, names in versions.needs.items()}
            self._keep("elf", path, {"needs": needs, "defines": sorted(versions.defines)})
        return versions

    def env(self, name: str) -> str:
        value = self._host.env(name)
        self._keep("env", name, without_secrets(name, value) or None)
        return value

    def is_set(self, name: str) -> bool:
        found = self._host.is_set(name)
        self._keep("env", name, without_secrets(name, self._host.env(name)) if found else None)
        return found

    def which(self, program: str) -> str | None:
        path = self._host.which(program)
        self._keep("programs", program, path)
        return path

    def run(self, *command: str, time_limit: float = COMMAND_TIME_LIMIT) -> CommandOutput:
        output = self._host.run(*command, time_limit=time_limit)
        self._keep("commands", " ".join(command), asdict(output))
        return output

    def probe(
        self,
        name: str,
        *arguments: str,
        time_limit: float = COMMAND_TIME_LIMIT,
        patience: float | None = None,
    ) -> ProbeOutput:
        output = self._host.probe(name, *arguments, time_limit=time_limit, patience=patience)
        self._keep(
            "probes",
            " ".join((name, *arguments)),
            {"facts": dict(output.facts), "error": output.error},
        )
        return output

    def platform(self) -> Platform:
        answer = self._host.platform()
        self._record["platform"] = asdict(answer)
        return answer

    def python(self) -> PythonFacts:
        answer = self._host.python()
        self._record["python"] = asdict(answer)
        return answer

    def package_version(self, name: str) -> str | None:
        version = self._host.package_version(name)
        self._keep("packages", name, version)
        return version

    def requirements(self, name: str) -> tuple[str, ...]:
        wanted = self._host.requirements(name)
        self._keep("requirements", name, list(wanted))
        return wanted

    def cpus_allowed(self) -> frozenset[int]:
        cpus = self._host.cpus_allowed()
        self._record["cpus_allowed"] = ",".join(str(cpu) for cpu in sorted(cpus))
        return cpus

    def soft_limit(self, name: str) -> int | None:
        limit = self._host.soft_limit(name)
        self._keep("limits", name, limit)
        return limit

    def disk(self, path: str) -> Disk | None:
        self.env("HOME")  # a replay resolves ~ with it
        answer = self._host.disk(path)
        if answer is not None:
            self._keep("disks", answer.path, asdict(answer))
        return answer

    def port(self, address: str, port: int) -> PortState:
        answer = self._host.port(address, port)
        self._keep("ports", f"{address}:{port}", asdict(answer))
        return answer

    def reach(self, url: str, proxy: str = "", time_limit: float = REACH_TIME_LIMIT) -> Reach:
        answer = self._host.reach(url, proxy, time_limit)
        self._keep("reach", url, asdict(answer))
        return answer


def without_secrets(name: str, value: str) -> str:
    """`value` as it may be written down: a token keeps its form, a URL loses its user."""
    if "token" in name.lower() or "key" in name.lower():
        return value[:3] + re.sub(r"[A-Za-z0-9]", "x", value[3:])
    return re.sub(r"//[^/@\s]+@", "//", value) if "proxy" in name.lower() else value
