"""How often each expert of a model was chosen: gathered while serving, kept across restarts.

A small file for each model in the user's state folder. The counts say which experts are worth
copies in spare GPU memory (`plan/hot_experts.py`). Losing them costs gathering them again, so that
nothing here is ever an error. No torch: `ktops plan` reads them too.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ktops_engine.config import EngineConfig
from ktops_engine.gguf import GgufModel
from ktops_engine.model_config import ModelConfig
from ktops_engine.plan import ExpertUse
from ktops_engine.remembered import state_folder
from ktops_engine.text import Text, text

# Choices of a layer after which all counts are halved, so that new use weighs more than old: for R1
# those of 262,144 tokens, about a day at 3 tok/s.
MOST_CHOICES = 1 << 21
# Choices for each expert, on average, from which on counts say something: for R1 1,024 tokens.
ENOUGH_CHOICES = 32

LOCK_TRIES, LOCK_PAUSE_S = 300, 0.01

Counts = npt.NDArray[np.int64]  # [layers with experts, experts]


def counts_path(gguf: GgufModel, environ: Mapping[str, str] = os.environ) -> Path:
    """Where the counts of a model are kept: by its name, size, and the shapes of its experts."""
    experts = sorted((t.name, t.shape, int(t.type)) for t in gguf.tensors.values()
                     if "_exps." in t.name)  # fmt: skip
    identity = (gguf.name, gguf.architecture, gguf.total_bytes, experts)
    key = hashlib.sha256(repr(identity).encode()).hexdigest()[:16]
    return state_folder(environ) / "expert-counts" / f"{key}.npy"


def path_for(config: EngineConfig, gguf: GgufModel) -> Path | None:
    """The file for a wish: the one it names, else the model's own. None for random weights, whose
    routers choose as no model does, and whose name and shapes are those of a real one."""
    if config.expert_counts is not None:
        return config.expert_counts
    return None if config.dummy is not None else counts_path(gguf)


def counts_shape(model: ModelConfig) -> tuple[int, int]:
    """Layers with experts, and experts of each."""
    return model.num_hidden_layers - model.first_k_dense_replace, model.n_routed_experts


def known_use(
    config: EngineConfig, gguf: GgufModel, model: ModelConfig
) -> tuple[ExpertUse | None, tuple[Text, ...]]:
    """What is known of the use of a model's experts, None when too little, and what is to be said
    of the file."""
    path = path_for(config, gguf)
    counts = None if path is None else load_counts(path, counts_shape(model))
    if path is not None and counts is None:
        note = text("{path} cannot be used: the use of experts is counted anew", path=path)
        return None, (note,)
    if counts is None or counts.max(initial=0) == 0:
        return None, ()
    is_enough = counts.sum(axis=1).max() >= ENOUGH_CHOICES * counts.shape[1]
    return (ExpertUse(tuple(map(tuple, counts.tolist()))) if is_enough else None), ()


def load_counts(path: Path, shape: tuple[int, int]) -> Counts | None:
    """The counts in a file, zeros where there is none, None where it holds something else."""
    try:
        with path.open("rb") as file:
            found = np.load(file, allow_pickle=False)
    except FileNotFoundError:
        return np.zeros(shape, dtype=np.int64)
    except (OSError, ValueError, EOFError):
        return None
    if not isinstance(found, np.ndarray) or found.shape != shape or found.dtype != np.int64:
        return None
    return found if found.min(initial=0) >= 0 else None


def add_counts(path: Path, new: npt.NDArray[np.integer]) -> None:
    """Add to a file what was counted since the last time, [layers with experts, experts]. Replaces
    it whole; processes that do so at once wait for each other. What cannot be read is begun anew,
    what cannot be written is lost.
    """
    layers, experts = new.shape
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path.parent):
            old = load_counts(path, (layers, experts))
            total = new.astype(np.int64) if old is None else old + new
            with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
                np.save(file, decayed(total))
            Path(file.name).replace(path)


def decayed(counts: Counts) -> Counts:
    """`counts`, halved as often as it takes to have at most MOST_CHOICES in every layer."""
    while counts.sum(axis=1).max(initial=0) > MOST_CHOICES:
        counts = counts // 2
    return counts


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Within, no other process is, unless one stays for seconds (it was stopped), or the file
    system has no locks."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        for _ in range(LOCK_TRIES):
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(LOCK_PAUSE_S)
            except OSError:
                break
        yield
    finally:
        os.close(handle)
