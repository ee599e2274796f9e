"""Whether a reference is of the run that it is to be compared with."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ktops_engine.errors import EXIT_USAGE, KtopsError
from ktops_engine.text import Text, text

if TYPE_CHECKING:
    from ktops_engine.evaluate.reference import ReferenceReader
    from ktops_engine.evaluate.windows import TextFile, TokenWindows


def refuse_other_text(reader: ReferenceReader, source: TextFile) -> None:
    """Raise KtopsError "other-text" for a reference of another text."""
    if reader.header.text_sha256 != source.sha256:
        raise _other(
            "other-text",
            text("{path} is of another text than {file}", path=reader.path, file=source.path),
        )


def refuse_other_tokens(reader: ReferenceReader, windows: TokenWindows, vocab_size: int) -> None:
    """Raise KtopsError "other-tokenizer" where the same text has other tokens."""
    header = reader.header
    if header.tokens_sha256 != windows.sha256 or header.vocab_size != vocab_size:
        raise _other(
            "other-tokenizer",
            text(
                "{path} is of a model with another tokenizer, {model}: its tokens of this text are "
                "others",
                path=reader.path,
                model=header.model,
            ),
        )


def same_number(flag: str, asked: int | None, kept: int, path: Path) -> int:
    """What the reference has, which `asked` may not contradict.

    Raises KtopsError "other-reference" (status 2).
    """
    if asked is None or asked == kept:
        return kept
    raise KtopsError(
        "other-reference",
        text("{flag} {asked}: {path} was written with {kept}", flag=flag, asked=asked, path=path,
             kept=kept),
        text("leave out {flag}: the reference's is taken", flag=flag),
        exit_status=EXIT_USAGE,
    )  # fmt: skip


def _other(code: str, message: Text) -> KtopsError:
    return KtopsError(
        code,
        message,
        text("write one of this text: ktops eval MODEL FILE --save-reference PATH"),
    )
