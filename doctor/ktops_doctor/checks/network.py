"""The way to the hubs: proxies, tokens, the clock, and whether anybody answers there."""

from __future__ import annotations

import re
from collections.abc import Iterator

from ktops_doctor.check import Check, Finding, Section, Status, fail, ok, skip, warn
from ktops_doctor.fixes import remark, sudo
from ktops_doctor.host import Host, Stage
from ktops_doctor.hubs import (
    HUBS,
    Answer,
    Hub,
    ask_hubs,
    offline,
    place,
    proxy_variables,
)
from ktops_doctor.target import Target
from ktops_doctor.units import binary
from ktops_engine.text import Text, joined, text

_MAX_SKEW_SECONDS = 300.0
_HF_TOKEN = re.compile(r"(hf_|api_org_)[A-Za-z0-9]{8,}")
_ANY_TOKEN = re.compile(r"[!-~]{8,}")  # printable ASCII without blanks
_OBEYED_PROXIES = frozenset({"http", "https"})


def _reach(host: Host, target: Target) -> Finding:
    answers = ask_hubs(host)
    value = joined([_outcome(answer) for answer in answers], "; ")
    if any(_counts(host, answer) for answer in answers):
        return ok(value)
    missing = target.missing_bytes
    if not missing:
        return ok(text("{answers}; nothing is to be fetched", answers=value))
    return fail(
        value,
        detail=text(
            "{size} of {model} cannot be downloaded", size=binary(missing), model=target.name
        ),
        fix=_way_out(host, answers),
    )


def _counts(host: Host, answer: Answer) -> bool:
    """Whether a hub can be fetched from: it answers, and the client may ask it."""
    return answer.reach.answered and not (answer.hub is HUBS[0] and offline(host))


def _outcome(answer: Answer) -> Text:
    where, reach = place(answer.url), answer.reach
    if reach.answered:
        return text("{place} answers ({seconds:.1f} s)", place=where, seconds=reach.seconds)
    if reach.stage is Stage.PROXY:
        return text("{place}: the proxy {proxy} does not let it through ({reason})",
                    place=where, proxy=place(answer.proxy), reason=reach.reason)  # fmt: skip
    return text(
        "{place}: {stage} ({reason})", place=where, stage=_STAGES[reach.stage], reason=reach.reason
    )


_STAGES = {
    Stage.NAME: text("its name is not found"),
    Stage.CONNECT: text("no connection"),
    Stage.TLS: text("no encryption"),
    Stage.HTTP: text("no answer"),
}


def _way_out(host: Host, answers: list[Answer]) -> str:
    stages = {answer.reach.stage for answer in answers}
    if Stage.PROXY in stages:
        return "ktops doctor --only net.proxy"
    if Stage.TLS in stages:
        return remark(
            "export SSL_CERT_FILE=/path/ca.pem",
            text("where a proxy of this network signs with a certificate of its own"),
        )
    if stages == {Stage.NAME}:
        return remark(
            "cat /etc/resolv.conf", text("names a name server that answers? Else set HTTPS_PROXY")
        )
    if offline(host):
        return _ONLINE
    return remark("export HTTPS_PROXY=http://HOST:PORT", text("where the way out is a proxy"))


def _proxy(host: Host, target: Target) -> Finding:
    names = proxy_variables(host)
    if not names:
        return ok(text("none is set: connections go out directly"))
    answers = ask_hubs(host)
    used = {answer.proxy: answer for answer in answers if answer.proxy}
    for proxy, answer in used.items():
        scheme = proxy.partition("://")[0]
        if scheme not in _OBEYED_PROXIES:
            return skip(text("a {scheme} proxy is not tried here", scheme=scheme))
        if answer.reach.stage is Stage.PROXY:
            return _dead(host, target, answers, answer)
    listed = ", ".join(names)
    if not used:
        return ok(text("{variables}, not for the hubs", variables=listed))
    return ok(text("{variables}: {proxies} answers", variables=listed, proxies=_places(used)))


def _places(proxies: dict[str, Answer]) -> str:
    return ", ".join(place(proxy) for proxy in proxies)


def _dead(host: Host, target: Target, answers: list[Answer], answer: Answer) -> Finding:
    """A proxy that stands in the way: of everything, or of one hub."""
    blocking = target.missing_bytes and not any(_counts(host, other) for other in answers)
    variables = [name for name in proxy_variables(host) if name.lower() != "no_proxy"]
    hubs = ", ".join(other.hub.name for other in answers if other.proxy == answer.proxy)
    return Finding(
        Status.FAIL if blocking else Status.WARN,
        text(
            "{proxy} from {variables} does not do its work ({reason})",
            proxy=place(answer.proxy),
            variables=", ".join(variables),
            reason=answer.reach.reason,
        ),
        detail=text("{hubs} cannot be reached through it", hubs=hubs),
        fix=remark(f"unset {' '.join(variables)}", text("or name a proxy that answers")),
    )


def _tokens(host: Host, target: Target) -> Finding:
    good = []
    for hub, where, token in _found_tokens(host):
        form = _HF_TOKEN if hub is HUBS[0] else _ANY_TOKEN
        if form.fullmatch(token) is None:
            fix = f"unset {where}" if where.isupper() else f"rm {where}"
            return warn(
                text("{where} holds no token of {hub}", where=where, hub=hub.name),
                detail=text("the hub refuses what is sent with it, public models too"),
                fix=remark(fix, text("or set it to a whole token, without quotes or blanks")),
            )
        good.append(text("{where} (not shown)", where=where))
    return ok(joined(good)) if good else ok(text("none; public models need none"))


def _found_tokens(host: Host) -> Iterator[tuple[Hub, str, str]]:
    """(hub, variable or file, token) of the tokens that would be sent."""
    for hub in HUBS:
        variable = next((name for name in hub.tokens if host.env(name)), "")
        if variable:
            yield hub, variable, host.env(variable).strip("\n")
        elif hub is HUBS[0]:
            path = _token_file(host)
            stored = (host.read_text(path) or "").strip()
            if stored:
                yield hub, path, stored


def _token_file(host: Host) -> str:
    cache = host.env("XDG_CACHE_HOME") or f"{host.env('HOME')}/.cache"
    home = host.env("HF_HOME") or f"{cache}/huggingface"
    return host.env("HF_TOKEN_PATH") or f"{home}/token"


_ONLINE = "unset HF_HUB_OFFLINE"


def _offline(host: Host, target: Target) -> Finding:
    if not offline(host):
        return ok(text("not set"))
    if not target.missing_bytes:
        return ok(text("HF_HUB_OFFLINE is set, and nothing is to be fetched"))
    return warn(
        text("HF_HUB_OFFLINE is set"),
        detail=text("nothing is fetched from Hugging Face"),
        fix=remark(_ONLINE, text("or: {command}", command="ktops download --source modelscope")),
    )


def _clock(host: Host, target: Target) -> Finding:
    known = [answer.reach.clock_skew for answer in ask_hubs(host)]
    skews = [skew for skew in known if skew is not None]
    if not skews:
        return skip(text("no hub told the time"))
    skew = min(skews, key=abs)
    if abs(skew) <= _MAX_SKEW_SECONDS:
        return ok(text("right to within {seconds:.0f} s", seconds=max(1.0, abs(skew))))
    minutes = f"{abs(skew) / 60:.0f}"
    return warn(
        text("{minutes} minutes fast", minutes=minutes)
        if skew > 0
        else text("{minutes} minutes slow", minutes=minutes),
        detail=text("certificates and signed addresses look expired, or not yet valid"),
        fix=sudo(host, "timedatectl set-ntp true"),
    )


CHECKS = (
    Check(
        id="hub.reach",
        title=text("Model hubs"),
        section=Section.NETWORK,
        run=_reach,
        why="Hugging Face and ModelScope (or the places that HF_ENDPOINT and MODELSCOPE_ENDPOINT "
        "name) are asked for one page, for at most a second and a half: name, connection, TLS, "
        "HTTP. One of them is enough, and none is needed once the files are here.",
    ),
    Check(
        id="hub.token",
        title=text("Tokens"),
        section=Section.NETWORK,
        run=_tokens,
        why="HF_TOKEN (or what `hf auth login` stored) and MODELSCOPE_API_TOKEN are looked at for "
        "their form; they are never shown and not sent. The models of the catalogue need none, "
        "but a token that is not whole makes a hub refuse public models too.",
    ),
    Check(
        id="hub.offline",
        title=text("Offline switch"),
        section=Section.NETWORK,
        run=_offline,
        why="With HF_HUB_OFFLINE set, the client of Hugging Face fetches nothing.",
    ),
    Check(
        id="net.proxy",
        title=text("Proxies"),
        section=Section.NETWORK,
        run=_proxy,
        why="HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY, in small or capital letters, as the "
        "download obeys them. A proxy that does not answer is named.",
    ),
    Check(
        id="net.clock",
        title=text("Clock"),
        section=Section.NETWORK,
        run=_clock,
        why="Certificates and the signed addresses of large files are valid for a time. The clock "
        "is compared with the date in a hub's answer.",
    ),
)
