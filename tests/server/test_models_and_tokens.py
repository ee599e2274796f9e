"""The model list, tokenising, health and version."""

from __future__ import annotations

import pytest


def test_the_model_list_has_the_fields_clients_read(serve, new_engine):
    with serve(new_engine(), model_id="org/r1", root="/models/r1") as live:
        listed = live.client.get("/v1/models").json()
        assert listed["object"] == "list"
        [card] = listed["data"]
        assert card.pop("created") > 1_700_000_000
        assert card == {
            "id": "org/r1",
            "object": "model",
            "owned_by": "ktops",
            "root": "/models/r1",
            "max_model_len": 400,
        }
        assert live.client.get("/v1/models/org/r1").json()["id"] == "org/r1"
        assert live.client.get("/models/org/r1").json()["id"] == "org/r1"
        assert live.chat(model="org/r1").status_code == 200


def test_root_is_the_id_unless_told(live):
    assert live.client.get("/models").json()["data"][0]["root"] == "test-model"


def test_an_unknown_model_id_is_not_found(live):
    response = live.client.get("/v1/models/other")
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "model_not_found"


def test_texts_become_token_ids_and_back(live, tokenizer):
    answer = live.client.post("/tokenize", json={"prompt": "世!"}).json()
    ids = [tokenizer.bos_token_id, *tokenizer.encode("世!")]
    assert answer == {"count": 5, "max_model_len": 400, "tokens": ids}
    back = live.client.post("/detokenize", json={"tokens": ids}).json()
    assert back == {"prompt": "<｜begin▁of▁sentence｜>世!"}


def test_special_tokens_are_left_out_on_request(live):
    body = {"prompt": "ab", "add_special_tokens": False, "model": "test-model"}
    assert live.client.post("/tokenize", json=body).json()["count"] == 2


def test_messages_are_tokenised_as_a_chat_request_would_be(live, engine):
    messages = [{"role": "user", "content": "hi"}]
    ids = live.client.post("/tokenize", json={"messages": messages}).json()["tokens"]
    live.chat("hi")
    assert engine.requests[0].prompt_token_ids == ids


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/tokenize", {}),
        ("/tokenize", {"prompt": "a", "messages": []}),
        ("/tokenize", {"prompt": 5}),
        ("/tokenize", {"messages": []}),
        ("/detokenize", {}),
        ("/detokenize", {"tokens": "ab"}),
        ("/detokenize", {"tokens": [262]}),
        ("/detokenize", {"tokens": [-1]}),
    ],
)
def test_bad_token_requests_are_refused(live, path, body):
    response = live.client.post(path, json=body)
    assert response.status_code == 400
    assert response.json()["error"]["type"] == "invalid_request_error"


def test_health_and_version(live):
    assert live.client.get("/health").json() == {"status": "ok"}
    assert live.client.head("/health").status_code == 200
    assert live.client.get("/version").json()["version"]
