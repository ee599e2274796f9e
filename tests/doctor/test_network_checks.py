"""The way to the hubs: one fault at a time on the healthy server, whose network answers."""

from __future__ import annotations

from dataclasses import replace

import pytest

from .conftest import answer, silent

HF, MS = "https://huggingface.co", "https://modelscope.cn"
CERTIFICATE = "export SSL_CERT_FILE=/path/ca.pem"
PROXY = "http://me:secret@proxy.example:3128"


def test_both_hubs_answer(ask, server, r1):
    result = ask(server, r1, "hub.reach")
    assert (result.status, result.value) == (
        "ok",
        "huggingface.co answers (0.2 s); modelscope.cn answers (0.3 s)",
    )


def test_one_hub_is_enough(ask, server, r1):
    server["reach"][HF] = silent("connect", "timed out")
    result = ask(server, r1, "hub.reach")
    assert (result.status, result.value) == (
        "ok",
        "huggingface.co: no connection (timed out); modelscope.cn answers (0.3 s)",
    )


@pytest.mark.parametrize(
    ("stage", "fix"),
    [
        ("name", "cat /etc/resolv.conf   # names a name server that answers? Else set HTTPS_PROXY"),
        ("connect", "export HTTPS_PROXY=http://HOST:PORT   # where the way out is a proxy"),
        (
            "tls",
            f"{CERTIFICATE}   # where a proxy of this network signs with a certificate of its own",
        ),
        ("http", "export HTTPS_PROXY=http://HOST:PORT   # where the way out is a proxy"),
    ],
)
def test_no_hub_at_all_is_a_failure_with_its_own_way_out(ask, server, r1, stage, fix):
    server["reach"] = {HF: silent(stage, "no"), MS: silent(stage, "no")}
    result = ask(server, r1, "hub.reach")
    assert (result.status, result.fix) == ("fail", fix)
    assert result.detail == "376.7 GiB of r1-q4km cannot be downloaded"


def test_nobody_needs_a_hub_when_all_files_are_here(ask, server, r1, demo):
    server["reach"] = {}
    complete = replace(r1, present_bytes=r1.weights_bytes)
    for target in (complete, demo):
        result = ask(server, target, "hub.reach")
        assert result.status == "ok"
        assert result.value.endswith("; nothing is to be fetched")


def test_endpoints_of_the_environment_are_asked_instead(ask, server, r1):
    server["env"] |= {"HF_ENDPOINT": "https://hf.mirror/", "MODELSCOPE_ENDPOINT": "ms.mirror:8443"}
    server["reach"] = {"https://hf.mirror": answer(1), "https://ms.mirror:8443": answer(1)}
    assert ask(server, r1, "hub.reach").value == (
        "hf.mirror answers (1.0 s); ms.mirror:8443 answers (1.0 s)"
    )


@pytest.mark.parametrize("name", ["HTTPS_PROXY", "https_proxy", "ALL_PROXY"])
def test_a_proxy_that_does_not_answer_is_named_without_its_password(ask, server, r1, name):
    server["env"][name] = PROXY
    server["reach"] = dict.fromkeys((HF, MS), silent("proxy", "Connection refused"))
    reach, proxy = ask(server, r1, "hub.reach"), ask(server, r1, "net.proxy")
    assert reach.fix == "ktops doctor --only net.proxy"
    assert (proxy.status, proxy.fix) == (
        "fail",
        f"unset {name}   # or name a proxy that answers",
    )
    assert proxy.value == (
        f"proxy.example:3128 from {name} does not do its work (Connection refused)"
    )
    assert "secret" not in proxy.summary + reach.summary


def test_a_dead_proxy_in_front_of_one_hub_only_is_a_warning(ask, server, r1):
    server["env"] |= {"HTTPS_PROXY": PROXY, "NO_PROXY": "localhost, .modelscope.cn"}
    server["reach"][HF] = silent("proxy", "407 Proxy Authentication Required")
    result = ask(server, r1, "net.proxy")
    assert (result.status, result.detail) == (
        "warn",
        "Hugging Face cannot be reached through it",
    )


@pytest.mark.parametrize(
    ("variables", "value"),
    [
        ({}, "none is set: connections go out directly"),
        ({"HTTPS_PROXY": PROXY}, "HTTPS_PROXY: proxy.example:3128 answers"),
        ({"http_proxy": PROXY}, "http_proxy, not for the hubs"),
        ({"HTTPS_PROXY": PROXY, "NO_PROXY": "*"}, "HTTPS_PROXY, NO_PROXY, not for the hubs"),
        ({"ALL_PROXY": "socks5://h:1"}, "a socks5 proxy is not tried here"),
    ],
)
def test_proxies_that_do_no_harm(ask, server, r1, variables, value):
    server["env"] |= variables
    result = ask(server, r1, "net.proxy")
    assert result.value == value
    assert result.status in ("ok", "skip")


@pytest.mark.parametrize(
    ("variables", "status", "value"),
    [
        ({}, "ok", "none; public models need none"),
        ({"HF_TOKEN": "hf_" + "a" * 34}, "ok", "HF_TOKEN (not shown)"),
        ({"HF_TOKEN": "'hf_quoted'"}, "warn", "HF_TOKEN holds no token of Hugging Face"),
        ({"HF_TOKEN": "my password"}, "warn", "HF_TOKEN holds no token of Hugging Face"),
        (
            {"MODELSCOPE_API_TOKEN": "ms-1234 5678"},
            "warn",
            "MODELSCOPE_API_TOKEN holds no token of ModelScope",
        ),
        ({"MODELSCOPE_API_TOKEN": "ms-12345678"}, "ok", "MODELSCOPE_API_TOKEN (not shown)"),
    ],
)
def test_tokens_are_judged_by_their_form_and_never_shown(ask, server, r1, variables, status, value):
    server["env"] |= variables
    result = ask(server, r1, "hub.token")
    assert (result.status, result.value) == (status, value)
    assert all(secret not in result.summary + result.fix for secret in variables.values())


def test_the_token_that_a_login_stored_is_looked_at_too(ask, server, r1):
    path = "/home/u/.cache/huggingface/token"
    server["files"][path] = "half a token\n"
    assert ask(server, r1, "hub.token").fix.startswith(f"rm {path}   # ")
    server["env"]["HF_HOME"] = "/elsewhere"
    assert ask(server, r1, "hub.token").status == "ok"


def test_the_offline_switch_keeps_one_hub_away(ask, server, r1, demo):
    server["env"]["HF_HUB_OFFLINE"] = "1"
    assert ask(server, demo, "hub.offline").status == "ok"
    result = ask(server, r1, "hub.offline")
    assert (result.status, result.fix) == (
        "warn",
        "unset HF_HUB_OFFLINE   # or: ktops download --source modelscope",
    )
    assert ask(server, r1, "hub.reach").status == "ok"
    server["reach"][MS] = silent("connect", "timed out")
    result = ask(server, r1, "hub.reach")
    assert (result.status, result.fix) == ("fail", "unset HF_HUB_OFFLINE")


@pytest.mark.parametrize(
    ("skew", "status", "value"),
    [
        (2.4, "ok", "right to within 2 s"),
        (7200.0, "warn", "120 minutes fast"),
        (-86400.0, "warn", "1440 minutes slow"),
        (None, "skip", "no hub told the time"),
    ],
)
def test_a_clock_that_is_wrong_is_found(ask, server, r1, skew, status, value):
    server["reach"] = dict.fromkeys((HF, MS), answer(0.1, skew))
    result = ask(server, r1, "net.clock")
    assert (result.status, result.value) == (status, value)
