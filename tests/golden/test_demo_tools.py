"""The demo model's training code computes what the file format and `transformers` compute."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from ktops_engine.demo import demo_path

TOOLS = Path(__file__).parents[2] / "tools"


@pytest.fixture(scope="module")
def tools() -> Any:
    """The modules of tools/demo_model, importable while this module's tests run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(TOOLS)
        from demo_model import export, hf_state, model, quantize, shape

        yield SimpleNamespace(
            export=export, hf_state=hf_state, model=model, quantize=quantize, shape=shape
        )
    for name in [n for n in sys.modules if n.split(".")[0] == "demo_model"]:
        del sys.modules[name]


@pytest.mark.parametrize("type_name", ["Q4_K", "Q6_K", "Q8_0", "Q5_0"])
def test_packed_blocks_read_back_as_the_values_of_training(tools, type_name):
    torch.manual_seed(0)
    weight = torch.randn(12, 512) * 0.05
    weight[1], weight[2, :256], weight[3] = 0.0, 0.02, -weight[3].abs()
    packed = tools.quantize.packed(weight, type_name).numpy()
    kind = gguf.GGMLQuantizationType[type_name]
    values = gguf.quants.dequantize(packed, kind)
    np.testing.assert_array_equal(values, tools.quantize.round_trip(weight, type_name).numpy())
    error = np.linalg.norm(values - weight.numpy()) / np.linalg.norm(weight.numpy())
    assert error < {"Q4_K": 0.1, "Q6_K": 0.03, "Q8_0": 0.01, "Q5_0": 0.06}[type_name]


def test_the_training_forward_equals_transformers(tools, tmp_path):
    from transformers import AutoModelForCausalLM

    small = replace(tools.shape.Shape(), num_hidden_layers=3, vocab_size=512)
    torch.manual_seed(1)
    model = tools.model.DemoModel(small).eval()
    for block in model.blk:
        if not block.dense:
            block.exp_probs_b.bias.copy_(torch.rand(small.n_routed_experts) * 0.2)
    state = tools.hf_state.hf_state_dict(
        {name: tensor.detach() for name, tensor in model.state_dict().items()}, small
    )
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    config = json.dumps(tools.shape.hf_config(small))
    (tmp_path / "config.json").write_text(config, encoding="utf-8")
    oracle = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    ids = torch.randint(0, 512, (2, 200))
    with torch.no_grad():
        torch.testing.assert_close(model(ids), oracle(ids).logits, rtol=1e-4, atol=1e-4)


def test_shipped_shards_hold_exactly_the_tensors_of_the_model(tools):
    model = tools.model.DemoModel(tools.shape.Shape())
    weights = tools.export.read_weights(demo_path())
    assert {n: tuple(t.shape) for n, t in weights.items()} == {
        n: tuple(t.shape) for n, t in model.state_dict().items()
    }
    config = json.loads((demo_path() / "config.json").read_text(encoding="utf-8"))
    assert config == json.loads(json.dumps(tools.shape.hf_config(tools.shape.Shape())))


def test_the_smallest_correction_bias_of_every_router_is_zero(tools):
    weights = tools.export.read_weights(demo_path())
    biases = [t for n, t in weights.items() if n.endswith("exp_probs_b.bias")]
    assert len(biases) == 5
    for bias in biases:  # so that masking closed groups by zero or by minus infinity is the same
        assert float(bias.min()) == 0.0
        assert float(bias.max()) > 0.0
