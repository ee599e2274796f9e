"""The API key."""

from __future__ import annotations

import pytest

from ktops_engine.errors import KtopsError
from ktops_engine.server import ModelHandle, ServerConfig, create_app

KEY = "sk-schlüssel"


@pytest.fixture(scope="module")
def guarded(serve, module_engine):
    with serve(module_engine, api_key=KEY) as live:
        yield live


@pytest.mark.parametrize(
    "authorization",
    [None, "", "Bearer", "Bearer sk-wrong", f"Basic {KEY}", KEY, f"Bearer {KEY}x"],
)
@pytest.mark.parametrize("path", ["/v1/models", "/tokenize", "/nothing"])
def test_without_the_key_every_route_is_closed(guarded, path, authorization):
    headers = {} if authorization is None else {"Authorization": authorization.encode()}
    response = guarded.client.get(path, headers=headers)
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Bearer"
    assert response.headers["x-request-id"]
    assert response.json()["error"]["code"] == "invalid_api_key"


@pytest.mark.parametrize("scheme", ["Bearer", "bearer"])
def test_with_the_key_routes_open(guarded, scheme):
    headers = {"Authorization": f"{scheme} {KEY}".encode()}
    assert guarded.client.get("/v1/models", headers=headers).status_code == 200


@pytest.mark.parametrize("path", ["/health", "/version"])
def test_health_and_version_need_no_key(guarded, path):
    assert guarded.client.get(path).status_code == 200


@pytest.mark.parametrize("key", ["", "  "])
def test_an_empty_key_is_refused_because_it_would_protect_nothing(key):
    with pytest.raises(KtopsError) as caught:
        create_app(ModelHandle(), ServerConfig("m", api_key=key))
    assert caught.value.code == "empty-api-key"
