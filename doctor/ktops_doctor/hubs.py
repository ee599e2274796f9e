"""The hubs that models come from, and the way to them that the environment describes."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from urllib.parse import urlsplit

from ktops_doctor.host import Host, Reach

_PROXY_NAMES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")
_TRUE = frozenset({"1", "ON", "YES", "TRUE"})


@dataclass(frozen=True)
class Hub:
    """A hub by name, the variable that moves it elsewhere, and the variables of its tokens."""

    name: str
    endpoint: str
    variable: str
    tokens: tuple[str, ...]


@dataclass(frozen=True)
class Answer:
    """How far this machine comes to a hub, and through which proxy ('' for none)."""

    hub: Hub
    url: str
    proxy: str
    reach: Reach


HUBS = (
    Hub(
        "Hugging Face",
        "https://huggingface.co",
        "HF_ENDPOINT",
        ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"),
    ),
    Hub("ModelScope", "https://modelscope.cn", "MODELSCOPE_ENDPOINT", ("MODELSCOPE_API_TOKEN",)),
)


def ask_hubs(host: Host) -> list[Answer]:
    """Both hubs, side by side. The host remembers the answers."""

    def ask(hub: Hub) -> Answer:
        url = endpoint(host, hub)
        proxy = proxy_for(host, url)
        return Answer(hub, url, proxy, host.reach(url, proxy))

    with ThreadPoolExecutor(len(HUBS)) as pool:
        return list(pool.map(ask, HUBS))


def endpoint(host: Host, hub: Hub) -> str:
    """Where a hub is, with the scheme, as the download takes it."""
    chosen = host.env(hub.variable) or hub.endpoint
    return (chosen if "://" in chosen else f"https://{chosen}").rstrip("/")


def proxy_for(host: Host, url: str) -> str:
    """The proxy that the environment names for a URL, with its scheme; '' for none."""
    parts = urlsplit(url)
    if _bypassed(parts.hostname or "", _either(host, "no_proxy")):
        return ""
    chosen = _either(host, f"{parts.scheme}_proxy") or _either(host, "all_proxy")
    return chosen if not chosen or "://" in chosen else f"http://{chosen}"


def _bypassed(name: str, no_proxy: str) -> bool:
    """Whether `name` is, or is below, one of the names of a list with commas; '*' is every name."""
    entries = (entry.strip().lstrip(".").partition(":")[0] for entry in no_proxy.split(","))
    return any(entry == "*" or (entry and f".{name}".endswith(f".{entry}")) for entry in entries)


def proxy_variables(host: Host) -> list[str]:
    """Which of the proxy variables are set, as they are written."""
    names = [name for lower in _PROXY_NAMES for name in (lower, lower.upper())]
    return [name for name in names if host.env(name)]


def place(url: str) -> str:
    """Host and port of a URL, without the user and password that it may carry."""
    return urlsplit(url).netloc.rpartition("@")[2]


def offline(host: Host) -> bool:
    """Whether the client of Hugging Face was told to stay off the network."""
    return host.env("HF_HUB_OFFLINE").upper() in _TRUE


def _either(host: Host, lower: str) -> str:
    return host.env(lower) or host.env(lower.upper())
