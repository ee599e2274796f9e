"""What must never be shown, and what is shown in its place."""

from __future__ import annotations

import re

MASK = "(set, not shown)"

# Whole words: KTOPS_MAX_NEW_TOKENS is no secret.
_SECRET_WORDS = frozenset({
    "KEY", "KEYS", "APIKEY", "TOKEN", "SECRET", "SECRETS", "PASSWORD", "PASSWD", "PASSPHRASE",
    "CREDENTIAL", "CREDENTIALS", "AUTH", "COOKIE", "COOKIES",
})  # fmt: skip
_ADDRESS_WORDS = ("PROXY", "ENDPOINT", "URL")
# Up to the last @ of a word: a password may hold every other character, / and @ included.
_URL_USER = re.compile(r"(?<=://)\S*@")
_BARE_USER = re.compile(r"(?:(?<=\s)|(?<=,)|^)[^\s/]\S*@")
_QUERY_SECRET = re.compile(r"(?i)([?&][^=&\s]*(?:key|token|secret|passw|sign)[^=&\s]*=)[^&\s]+")
_TOKEN = re.compile(r"\b(hf_|sk-)[A-Za-z0-9_-]{8,}")


def is_secret(name: str) -> bool:
    """Whether the variable or setting `name` holds a secret, going by its name."""
    return not _SECRET_WORDS.isdisjoint(re.split(r"[^A-Z0-9]+", name.upper()))


def masked(name: str, value: str) -> str:
    """`value` of the variable or setting `name` as it may be shown.

    All of it is hidden when the name speaks of a secret; else the user of a URL or of a proxy, the
    secrets of a query, and what looks like a token of a hub.
    """
    if is_secret(name):
        return MASK
    if any(word in name.upper() for word in _ADDRESS_WORDS) and "://" not in value:
        value = _BARE_USER.sub("***@", value)
    return mask_text(value)


def mask_text(words: str) -> str:
    """`words` without the secrets that can be told by their form."""
    words = _URL_USER.sub("***@", words)
    words = _QUERY_SECRET.sub(r"\1***", words)
    return _TOKEN.sub(r"\1***", words)
