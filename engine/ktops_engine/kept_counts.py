"""Brings what a GPU counts of its experts' use to the file that keeps it."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import monotonic

import numpy as np
import torch

from ktops_engine.expert_counts import add_counts

SECONDS_BETWEEN = 60.0

logger = logging.getLogger(__name__)


class CountKeeper:
    """Takes the counts to RAM and begins them anew, at most once a minute; a thread beside writes
    the file. One thread looks; `close` comes after its last look."""

    def __init__(
        self,
        counts: torch.Tensor,
        num_layers: int,
        path: Path,
        seconds_between: float = SECONDS_BETWEEN,
    ) -> None:
        """counts: [layers with experts on the device, experts] int32 there, which others add to;
        these are the first of the model's `num_layers` with experts, of all of which the file
        has a row."""
        self._counts = counts
        self._num_layers = num_layers
        self._path = path
        self._seconds_between = seconds_between
        self._due = monotonic() + seconds_between
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="ktops-expert-counts")

    def look(self) -> None:
        """Take what was counted, if it is time. Between steps: waits for the device."""
        now = monotonic()
        if now >= self._due:
            self._due = now + self._seconds_between
            self._take()

    def close(self) -> None:
        """Take and write the rest."""
        try:
            self._take()
        except RuntimeError as error:  # a GPU that has failed gives nothing back
            logger.warning("the use of experts since the last minute is lost: %s", error)
        self._writer.shutdown()

    def _take(self) -> None:
        counted, num_experts = self._counts.shape
        new = np.zeros((self._num_layers, num_experts), np.int32)
        new[:counted] = self._counts.cpu().numpy()
        self._counts.zero_()
        if new.any():
            self._writer.submit(add_counts, self._path, new)
