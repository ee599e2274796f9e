"""From the generator to packed windows of token ids."""

from dataclasses import dataclass
from multiprocessing import Pool

import numpy as np
from tokenizers import Tokenizer

from demo_model.corpus import make_conversation, render

PAD_ID = 2
CHUNK = 500
_workers: dict[str, Tokenizer] = {}  # one tokenizer a worker process


@dataclass(frozen=True)
class Documents:
    """Token ids of all conversations end to end; `learned` marks the ids the loss counts."""

    ids: np.ndarray  # [tokens] uint16
    learned: np.ndarray  # [tokens] bool
    lengths: np.ndarray  # [documents] int64


def conversation_texts(seed: str, count: int) -> list[str]:
    """Whole conversations as text, for the tokenizer's training."""
    texts = []
    for i in range(count):
        key = f"{seed}-{i}"
        texts.append("".join(text for text, _ in render(make_conversation(key), key)))
    return texts


def encode_document(tokenizer: Tokenizer, key: str) -> tuple[list[int], list[bool]]:
    ids: list[int] = []
    learned: list[bool] = []
    for text, counts in render(make_conversation(key), key):
        piece = tokenizer.encode(text, add_special_tokens=False).ids
        ids += piece
        learned += [counts] * len(piece)
    return ids, learned


def _start_worker(path: str) -> None:
    _workers["tokenizer"] = Tokenizer.from_file(path)


def _encode_chunk(job: tuple[str, int, int]) -> tuple[np.ndarray, np.ndarray, list[int]]:
    seed, start, stop = job
    ids: list[int] = []
    learned: list[bool] = []
    lengths = []
    for i in range(start, stop):
        some_ids, some_learned = encode_document(_workers["tokenizer"], f"{seed}-{i}")
        ids += some_ids
        learned += some_learned
        lengths.append(len(some_ids))
    return np.array(ids, np.uint16), np.array(learned, bool), lengths


def encode_documents(tokenizer_path: str, seed: str, count: int, processes: int) -> Documents:
    """Generate and tokenise conversations 0 to count of `seed`, in order."""
    jobs = [(seed, i, min(i + CHUNK, count)) for i in range(0, count, CHUNK)]
    with Pool(processes, _start_worker, (tokenizer_path,)) as pool:
        parts = pool.map(_encode_chunk, jobs)
    ids, learned, lengths = zip(*parts, strict=True)
    return Documents(np.concatenate(ids), np.concatenate(learned), np.concatenate(lengths))


def pack(
    documents: Documents, window: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Whole documents in random order into windows of `window + 1` ids, the rest padded.

    Returns ids [windows, window + 1] uint16 and learned [windows, window + 1] bool.
    """
    starts = np.concatenate([[0], np.cumsum(documents.lengths)[:-1]])
    order = rng.permutation(len(starts))
    order = order[documents.lengths[order] <= window + 1]
    ends = np.cumsum(documents.lengths[order])
    rows, first, base = [], 0, 0
    while first < len(order):
        last = int(np.searchsorted(ends, base + window + 1, side="right"))
        rows.append(order[first:last])
        first, base = last, ends[last - 1]
    ids = np.full((len(rows), window + 1), PAD_ID, np.uint16)
    learned = np.zeros((len(rows), window + 1), bool)
    for row, members in enumerate(rows):
        at = 0
        for document in members:
            start, length = starts[document], documents.lengths[document]
            ids[row, at : at + length] = documents.ids[start : start + length]
            learned[row, at : at + length] = documents.learned[start : start + length]
            at += length
    return ids, learned
