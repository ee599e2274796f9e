"""Rebuild a byte-level BPE tokenizer from GGUF metadata (`tokenizer.ggml.*`)."""

from __future__ import annotations

from types import MappingProxyType
from typing import TypeGuard

import numpy as np
import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers

from ktops_engine.errors import KtopsError
from ktops_engine.gguf import GgufModel
from ktops_engine.text import text

# GGUF's token types.
_NORMAL, _CONTROL, _USER_DEFINED = 1, 3, 4

# Control tokens of DeepSeek's vocabularies that their tokenizer.json does not call special: they
# are part of the visible answer (tool calls) or of the prompt's text. GGUF converters mark all
# tokens of this look as control tokens.
_VISIBLE_CONTROL = ("<｜tool", "<｜User｜>", "<｜Assistant｜>", "<｜fim")

# The pre-tokenizers that DeepSeek's tokenizer.json files define, under llama.cpp's names.
_DEEPSEEK_V3_SPLITS = (
    r"\p{N}{1,3}",
    "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
    (
        r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"
        r"|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
        r"| ?[\p{P}\p{S}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
)
# Letters with case, as deepseek-llm's pattern lists them.
_CASED_LETTERS = (
    "A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af"
    "\u0370-\u0373\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1"
    "\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd"
    "\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d"
    "\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d\u1f80-\u1fb4"
    "\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec"
    "\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128"
    "\u212a-\u212d\u212f-\u2134\u2139\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b"
    "\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b\ua722-\ua76f\ua771-\ua787"
    "\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a"
    "\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-\U000104fb\U00010c80-\U00010cb2"
    "\U00010cc0-\U00010cf2\U000118a0-\U000118df\U0001e900-\U0001e943"
)
_DEEPSEEK_LLM_SPLITS = (
    r"[\r\n]",
    rf"\s?[{_CASED_LETTERS}]+",
    "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+",
    r"\s+$",
    "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+",
    r"\p{N}",
)
_SPLITS = MappingProxyType(
    {"deepseek-v3": _DEEPSEEK_V3_SPLITS, "deepseek-llm": _DEEPSEEK_LLM_SPLITS}
)


def byte_alphabet() -> dict[int, str]:
    """The printable character that stands for each byte in a byte-level vocabulary.

    GPT-2's scheme: bytes that print in Latin-1 stand for themselves, the others take the
    characters from U+0100 on, in order.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = {byte: chr(byte) for byte in printable}
    return alphabet | {byte: chr(0x100 + index) for index, byte in enumerate(others)}


def rebuild_tokenizer(gguf: GgufModel) -> tokenizers.Tokenizer:
    """Byte-level BPE from tokens, token types and merges, with DeepSeek's pre-tokenizers.

    Raises KtopsError: tokenizer-not-found (no vocabulary in the file), unsupported-tokenizer
    (another kind or pre-tokenizer), tokenizer-invalid (its parts contradict each other).
    """
    splits = _splits(gguf)
    tokens, types = _tokens(gguf)
    known = (_NORMAL, _CONTROL, _USER_DEFINED)
    vocab = {token: id for id, token in enumerate(tokens) if types[id] in known}
    if len(vocab) != sum(kind in known for kind in types):
        raise _invalid(gguf, text("a token appears twice in its vocabulary"))
    # A merge into a token that does not exist can never apply; synthetic files hold such ones.
    merges = [pair for pair in _merges(gguf) if "".join(pair) in vocab]
    try:
        inner = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=merges))
    except Exception as error:
        raise _invalid(
            gguf, text("its merges do not fit its tokens ({error})", error=error)
        ) from error
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.pre_tokenizer = pre_tokenizers.Sequence([*splits, byte_level])
    inner.decoder = decoders.ByteLevel()
    # The library finds these in the vocabulary, so they keep their ids.
    inner.add_tokens(
        [
            AddedToken(token, normalized=False, special=_is_special(token, types[id]))
            for id, token in enumerate(tokens)
            if types[id] in (_CONTROL, _USER_DEFINED)
        ]
    )
    return inner


def _is_special(token: str, kind: int) -> bool:
    return kind == _CONTROL and not token.startswith(_VISIBLE_CONTROL)


def _splits(gguf: GgufModel) -> list[pre_tokenizers.PreTokenizer]:
    model = gguf.metadata.get("tokenizer.ggml.model")
    pre = gguf.metadata.get("tokenizer.ggml.pre")
    if model is None:
        raise KtopsError(
            "tokenizer-not-found",
            text("{path} has no tokenizer in its metadata.", path=gguf.paths[0]),
            text("Give the folder of the model's tokenizer.json: --model-path FOLDER"),
        )
    if not isinstance(model, str) or model != "gpt2" or str(pre) not in _SPLITS:
        raise KtopsError(
            "unsupported-tokenizer",
            text(
                "{path} has a tokenizer of kind {model!r} with the pre-tokenizer {pre!r}; "
                "ktops rebuilds byte-level BPE (gpt2) with one of {known}.",
                path=gguf.paths[0],
                model=model,
                pre=pre,
                known=", ".join(_SPLITS),
            ),
            text("Give the folder of the model's tokenizer.json: --model-path FOLDER"),
        )
    return [
        pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in _SPLITS[str(pre)]
    ]


def _tokens(gguf: GgufModel) -> tuple[list[str], list[int]]:
    """Tokens in id order and their types; without types, all are normal."""
    tokens = gguf.metadata.get("tokenizer.ggml.tokens")
    if not _is_text_list(tokens):
        raise _invalid(gguf, text("tokenizer.ggml.tokens is not a list of texts"))
    types = gguf.metadata.get("tokenizer.ggml.token_type")
    if types is None:
        return tokens, [_NORMAL] * len(tokens)
    if not isinstance(types, np.ndarray) or len(types) != len(tokens):
        raise _invalid(gguf, text("tokenizer.ggml.token_type does not have one number per token"))
    return tokens, types.tolist()


def _merges(gguf: GgufModel) -> list[tuple[str, str]]:
    """Merges, written as two tokens with a space between; a token may not be empty."""
    merges = gguf.metadata.get("tokenizer.ggml.merges")
    if not _is_text_list(merges):
        raise _invalid(gguf, text("tokenizer.ggml.merges is not a list of texts"))
    pairs = []
    for merge in merges:
        left, _, right = merge.partition(" ")
        if not left or not right:
            raise _invalid(gguf, text("the merge {merge!r} is not two tokens", merge=merge))
        pairs.append((left, right))
    return pairs


def _is_text_list(value: object) -> TypeGuard[list[str]]:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _invalid(gguf: GgufModel, why: str) -> KtopsError:
    return KtopsError(
        "tokenizer-invalid",
        text("The tokenizer in {path} is not usable: {why}.", path=gguf.paths[0], why=why),
        text("Give the folder of the model's tokenizer.json: --model-path FOLDER"),
    )
