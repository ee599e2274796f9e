"""Whatever stands in the files, there is a configuration or one error."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from model_shapes import V3

from ktops_engine.errors import KtopsError
from ktops_engine.gguf import GgufModel
from ktops_engine.gguf.values import Metadata
from ktops_engine.model_config import ModelConfig, resolve_model_config
from ktops_engine.tokenizer import load_tokenizer

VALUES = (
    st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.booleans()
    | st.text(max_size=4)
    | st.lists(st.text(max_size=3), max_size=3)
    | st.just(np.arange(3))
)


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
def test_any_value_under_any_key_gives_a_model_or_one_error(
    tiny: GgufModel, data: st.DataObject
) -> None:
    key = data.draw(st.sampled_from([key for key in tiny.metadata if not key.startswith("split")]))
    changed = Metadata(dict(tiny.metadata) | {key: data.draw(VALUES)})
    error = None
    try:
        gguf = replace(tiny, metadata=changed)
        resolve_model_config(gguf, None)
        load_tokenizer(gguf, None)
    except KtopsError as caught:
        error = caught
    assert error is None or error.hint


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=4,
)


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
def test_any_json_value_in_any_field_gives_a_configuration_or_one_error(
    tmp_path: Path, tiny: GgufModel, data: st.DataObject
) -> None:
    config = V3.config()
    name = data.draw(st.sampled_from([*config, "rope_parameters"]))
    draw: Callable[[], Any] = lambda: data.draw(JSON)  # noqa: E731 typed for the two uses below
    if name == "rope_scaling" and data.draw(st.booleans()):
        scaling = dict(config["rope_scaling"])  # type: ignore[call-overload]
        config[name] = scaling | {data.draw(st.sampled_from([*scaling])): draw()}
    else:
        config[name] = draw()
    folder = tmp_path / "fuzz"
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    error = None
    try:
        resolved, _ = resolve_model_config(tiny, folder)
        assert isinstance(resolved, ModelConfig)
    except KtopsError as caught:
        error = caught
    assert error is None or error.hint
