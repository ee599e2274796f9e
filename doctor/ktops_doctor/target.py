"""What the machine is held against: a model's needs and where it would be kept and served."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Target:
    """A model to be served. Bytes are plain counts, `cores` are physical CPU cores.

    `weights_bytes` is the size of its weight files, of which `present_bytes` are on the disk
    already. `models_dir` is where they belong, `weights` one of the weight files or their folder:
    '' when none is there, "demo" for the embedded model. `port` 0 means: any free port.
    """

    name: str
    title: str
    weights_bytes: int
    ram_bytes: int
    vram_bytes: int
    cores: int
    present_bytes: int = 0
    weights: str = ""
    models_dir: str = "~/.local/share/ktops/models"
    host: str = "127.0.0.1"
    port: int = 10002

    @property
    def missing_bytes(self) -> int:
        """What is still to be fetched of its files."""
        return max(0, self.weights_bytes - self.present_bytes)

    @property
    def gpu_required(self) -> bool:
        """Whether it is to be served with a GPU."""
        return self.vram_bytes > 0
