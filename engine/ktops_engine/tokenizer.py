"""Text to token ids and back, for byte-level BPE vocabularies.

The vocabulary comes from tokenizer.json, or is rebuilt from GGUF metadata. Decoding goes through
bytes, here, so that a token's bytes, whole decodes and incremental decodes cannot disagree.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models

from ktops_engine.errors import KtopsError
from ktops_engine.gguf import GgufModel
from ktops_engine.model_config.json_file import read_json_object
from ktops_engine.text import text
from ktops_engine.tokenizer_gguf import byte_alphabet, rebuild_tokenizer


@dataclass(frozen=True)
class _Extras:
    """What surrounds a vocabulary; None: not said."""

    bos_token_id: int | None = None
    eos_token_id: int | None = None
    adds_bos: bool | None = None
    chat_template: str | None = None


class Tokenizer:
    """A byte-level BPE tokenizer with DeepSeek's special tokens. Thread-safe, immutable.

    `vocab_size` is the highest id plus one; a model's embedding may have more rows. `bos_token`
    and `eos_token` are "" where there is none. `chat_template` is Jinja source, not rendered here.
    """

    def __init__(self, inner: tokenizers.Tokenizer, extras: _Extras) -> None:
        self._inner = inner
        added = inner.get_added_tokens_decoder()
        self._added = {id: token.content.encode() for id, token in added.items()}
        self._special_ids = frozenset(id for id, token in added.items() if token.special)
        self._byte_of = {char: byte for byte, char in byte_alphabet().items()}
        self.vocab_size: int = max(inner.get_vocab().values(), default=-1) + 1
        self.bos_token_id = extras.bos_token_id
        self.eos_token_id = extras.eos_token_id
        self.bos_token = self._token(extras.bos_token_id)
        self.eos_token = self._token(extras.eos_token_id)
        self.chat_template = extras.chat_template
        self._adds_bos = extras.adds_bos is not False and extras.bos_token_id is not None

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        """Token ids of `text`; special tokens written out in it become their ids.

        `add_special_tokens` puts the begin-of-sequence token in front where the model wants one,
        unless the text begins with it. Lone surrogates are read as U+FFFD.
        """
        try:
            text.encode()
        except UnicodeEncodeError:
            text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        # The batch call lets other threads run meanwhile; the single one holds them for seconds.
        (encoding,) = self._inner.encode_batch_fast([text], add_special_tokens=False)
        ids: list[int] = encoding.ids
        bos = self.bos_token_id
        if add_special_tokens and self._adds_bos and bos is not None and ids[:1] != [bos]:
            ids.insert(0, bos)
        return ids

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        """The text of `ids`. Bytes that are not UTF-8 become U+FFFD; unknown ids nothing."""
        data = b"".join(
            self.token_bytes(id)
            for id in ids
            if not (skip_special_tokens and id in self._special_ids)
        )
        return data.decode("utf-8", "replace")

    def token_id(self, token: str) -> int | None:
        """The id of a token given as it stands in the vocabulary, None if there is none."""
        id: int | None = self._inner.token_to_id(token)
        return id

    def token_bytes(self, id: int) -> bytes:
        """The bytes one token stands for; none for ids outside the vocabulary."""
        if id in self._added:
            return self._added[id]
        token = self._inner.id_to_token(id) if 0 <= id < self.vocab_size else None
        if token is None:
            return b""
        try:
            return bytes(map(self._byte_of.__getitem__, token))
        except KeyError:
            return str(token).encode()

    def is_special(self, id: int) -> bool:
        """Whether decoding leaves this token out unless told otherwise."""
        return id in self._special_ids

    def _token(self, id: int | None) -> str:
        return "" if id is None else self.token_bytes(id).decode("utf-8", "replace")


class IncrementalDecoder:
    """Turns a stream of token ids into text, complete characters only.

    The pushes and the flush joined are exactly `Tokenizer.decode` of all ids. Each push costs the
    length of its own token, whatever came before.
    """

    def __init__(self, tokenizer: Tokenizer, skip_special_tokens: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skips_special = skip_special_tokens
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        """The text that became certain; "" while a character is incomplete."""
        if self._skips_special and self._tokenizer.is_special(token_id):
            return ""
        return self._decoder.decode(self._tokenizer.token_bytes(token_id))

    def flush(self) -> str:
        """What is left at the end: U+FFFD for a character that never became complete."""
        rest = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return rest


def load_tokenizer(gguf: GgufModel, model_path: Path | None) -> Tokenizer:
    """The tokenizer of a model.

    From `model_path`/tokenizer.json if it is there, else from GGUF metadata. The chat template and
    the begin and end tokens come from `model_path` (chat_template.jinja, tokenizer_config.json)
    where given, else from the GGUF. Raises KtopsError: tokenizer-invalid, tokenizer-not-found,
    tokenizer-mismatch, unsupported-tokenizer.
    """
    inner = None if model_path is None else _read_tokenizer_json(model_path / "tokenizer.json")
    if inner is None:
        inner = rebuild_tokenizer(gguf)
    extras = _gguf_extras(gguf)
    if model_path is not None:
        given = _folder_extras(model_path, inner)
        known = {name: value for name, value in vars(given).items() if value is not None}
        extras = replace(extras, **known)
    tokenizer = Tokenizer(inner, extras)
    _check_fits(tokenizer, gguf, model_path)
    return tokenizer


def _read_tokenizer_json(path: Path) -> tokenizers.Tokenizer | None:
    description = read_json_object(path)
    if description is None:
        return None
    try:
        inner = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:
        raise _invalid(path, str(error)) from error
    if not isinstance(inner.model, models.BPE) or not isinstance(inner.decoder, decoders.ByteLevel):
        raise KtopsError(
            "unsupported-tokenizer",
            text(
                "{path} is not a byte-level BPE tokenizer, which all DeepSeek models use.",
                path=path,
            ),
            text("Give --model-path the config folder of the model itself"),
        )
    # The library renumbers added tokens that leave a gap, with no more than a log line.
    for token in description.get("added_tokens") or []:
        if inner.token_to_id(token["content"]) != token["id"]:
            raise _invalid(
                path,
                text(
                    "its token {token!r} cannot have the id {id}",
                    token=token["content"],
                    id=token["id"],
                ),
            )
    inner.no_truncation()
    inner.no_padding()
    return inner


def _check_fits(tokenizer: Tokenizer, gguf: GgufModel, model_path: Path | None) -> None:
    """A vocabulary larger than the embedding belongs to another model."""
    embedding = gguf.tensors.get("token_embd.weight")
    if embedding is not None and tokenizer.vocab_size > embedding.shape[0]:
        raise KtopsError(
            "tokenizer-mismatch",
            text(
                "The tokenizer in {source} has {vocab_size} tokens, the embedding in "
                "{path} only {num_rows}.",
                source=model_path or gguf.paths[0],
                vocab_size=tokenizer.vocab_size,
                path=gguf.paths[0],
                num_rows=embedding.shape[0],
            ),
            text("Give --model-path the config folder of the same model, or leave it out"),
        )


def _gguf_extras(gguf: GgufModel) -> _Extras:
    metadata = gguf.metadata
    template = metadata.get("tokenizer.chat_template")
    adds_bos = metadata.get("tokenizer.ggml.add_bos_token")
    return _Extras(
        bos_token_id=_id_or_none(metadata.get("tokenizer.ggml.bos_token_id")),
        eos_token_id=_id_or_none(metadata.get("tokenizer.ggml.eos_token_id")),
        adds_bos=adds_bos if isinstance(adds_bos, bool) else None,
        chat_template=template if isinstance(template, str) else None,
    )


def _id_or_none(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _folder_extras(folder: Path, inner: tokenizers.Tokenizer) -> _Extras:
    config = read_json_object(folder / "tokenizer_config.json") or {}
    adds_bos = config.get("add_bos_token")
    return _Extras(
        bos_token_id=_named_token(folder, inner, config, "bos_token"),
        eos_token_id=_named_token(folder, inner, config, "eos_token"),
        adds_bos=adds_bos if isinstance(adds_bos, bool) else None,
        chat_template=_folder_template(folder, config),
    )


def _named_token(
    folder: Path, inner: tokenizers.Tokenizer, config: dict[str, Any], key: str
) -> int | None:
    """The id of a token that tokenizer_config.json names, as a text or as an object."""
    given = config.get(key)
    content = given.get("content") if isinstance(given, dict) else given
    if content is None:
        return None
    id: int | None = inner.token_to_id(content) if isinstance(content, str) else None
    if id is None:
        raise _invalid(
            folder / "tokenizer_config.json",
            text("its {key} {content!r} is not in the vocabulary", key=key, content=content),
        )
    return id


def _folder_template(folder: Path, config: dict[str, Any]) -> str | None:
    """chat_template.jinja, else tokenizer_config.json's chat_template, one or the default of many.

    transformers prefers the file as well.
    """
    path = folder / "chat_template.jinja"
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:
        raise _invalid(path, str(error)) from error
    given = config.get("chat_template")
    if isinstance(given, list):
        entries = [entry for entry in given if isinstance(entry, dict)]
        named = {entry.get("name"): entry.get("template") for entry in entries}
        given = named.get("default")
    if given is not None and not isinstance(given, str):
        raise _invalid(folder / "tokenizer_config.json", text("its chat_template is not a text"))
    return given


def _invalid(path: Path, why: str) -> KtopsError:
    return KtopsError(
        "tokenizer-invalid",
        text("{path} is not usable: {why}.", path=path, why=why),
        text("Download it again from the model's repository: rm '{path}'", path=path),
    )
