"""A small byte-level BPE vocabulary with DeepSeek's special tokens, for GGUF and tokenizer.json."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

BOS, EOS, PAD = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"
MARKERS = (
    "<think>",
    "</think>",
    "<｜User｜>",
    "<｜Assistant｜>",
    "<|EOT|>",
    "<｜tool▁calls▁begin｜>",
    "<｜tool▁calls▁end｜>",
    "<｜tool▁call▁begin｜>",
    "<｜tool▁call▁end｜>",
    "<｜tool▁sep｜>",
)
# What DeepSeek's tokenizer.json marks as special, so hidden when decoding.
SPECIAL = frozenset({BOS, EOS, PAD, "<|EOT|>"})
WORDS = (
    " the",
    " and",
    "ing",
    "hello",
    " world",
    "tion",
    "123",
    "你好",
    "是",
    "阶乘",
    "def ",
    "\n\n",
)

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m['role'] == 'user' %}{{ '<｜User｜>' + m['content'] }}"
    "{% elif m['role'] == 'assistant' %}{{ '<｜Assistant｜>' + m['content'] + eos_token }}"
    "{% else %}{{ m['content'] }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<｜Assistant｜><think>\\n' }}{% endif %}"
)


@dataclass(frozen=True)
class Vocabulary:
    """Tokens in id order, their GGUF token types (1 normal, 3 control, 4 user-defined, 5 unused)
    and the BPE merges as "left right"."""

    tokens: tuple[str, ...]
    types: tuple[int, ...]
    merges: tuple[str, ...]

    def id_of(self, token: str) -> int:
        return self.tokens.index(token)


def byte_alphabet() -> dict[int, str]:
    """GPT-2's printable stand-in for every byte."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {
        byte: chr(256 + index) for index, byte in enumerate(others)
    }


def make_vocabulary(size: int = 384) -> Vocabulary:
    """A vocabulary padded with unused tokens to `size` (at least 320)."""
    alphabet = byte_alphabet()
    tokens = [BOS, EOS, PAD]
    types = [3, 3, 3]
    tokens += [alphabet[byte] for byte in range(256)]
    types += [1] * 256
    merges: list[str] = []
    for word in WORDS:
        pieces = [alphabet[byte] for byte in word.encode()]
        left = pieces[0]
        for right in pieces[1:]:
            if f"{left} {right}" not in merges:
                merges.append(f"{left} {right}")
                tokens.append(left + right)
                types.append(1)
            left += right
    tokens += MARKERS
    types += [4 if marker.endswith("think>") else 3 for marker in MARKERS]
    if len(tokens) > size:
        raise ValueError(f"a vocabulary needs at least {len(tokens)} tokens, not {size}")
    unused = range(len(tokens), size)
    tokens += [f"[PAD{index}]" for index in unused]
    types += [5] * len(unused)
    return Vocabulary(tuple(tokens), tuple(types), tuple(merges))


def write_tokenizer_files(folder: Path, size: int = 384) -> None:
    """Write tokenizer.json and tokenizer_config.json of `make_vocabulary(size)`."""
    vocabulary = make_vocabulary(size)
    added = [
        {
            "id": index,
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": token in SPECIAL,
        }
        for index, (token, kind) in enumerate(zip(vocabulary.tokens, vocabulary.types, strict=True))
        if kind in (3, 4)
    ]
    split_patterns = (
        r"\p{N}{1,3}",
        "[一-龥\u3040-ゟ゠-ヿ]+",
        (
            r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"
            r"|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
            r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        ),
    )
    byte_level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": False,
    }
    splits = [
        {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}
        for regex in split_patterns
    ]
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": "Sequence", "normalizers": []},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*splits, byte_level]},
        "post_processor": {**byte_level, "trim_offsets": False},
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": {
                token: index
                for index, (token, kind) in enumerate(
                    zip(vocabulary.tokens, vocabulary.types, strict=True)
                )
                if kind == 1 or token in (BOS, EOS, PAD)
            },
            "merges": list(vocabulary.merges),
        },
    }
    config = {
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": {"__type": "AddedToken", "content": BOS, "special": True},
        "eos_token": {"__type": "AddedToken", "content": EOS, "special": True},
        "pad_token": EOS,
        "chat_template": CHAT_TEMPLATE,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    _write_json(folder / "tokenizer.json", tokenizer)
    _write_json(folder / "tokenizer_config.json", config)


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1), encoding="utf-8")
