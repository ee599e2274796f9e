"""Write the trained model as two GGUF shards in the Q4_K_M mix, and its config-only folder."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from demo_model.quantize import packed
from demo_model.shape import Shape, hf_config
from demo_model.tokenizer import CHAT_TEMPLATE, save_tokenizer, write_json

NUM_SHARDS = 2
FILE_NAME = "ktops-demo-Q4_K_M-{:05d}-of-{:05d}.gguf"
MOSTLY_Q4_K_M = 15
SIGMOID_GATING = 2


def architecture_metadata(shape: Shape) -> dict[str, Any]:
    """The `deepseek2.*` keys; integers become uint32, floats float32, bools bool."""
    yarn, latent = shape.yarn, shape.kv_lora_rank
    return {
        "block_count": shape.num_hidden_layers,
        "context_length": shape.max_position_embeddings,
        "embedding_length": shape.hidden_size,
        "feed_forward_length": shape.intermediate_size,
        "leading_dense_block_count": shape.first_k_dense_replace,
        "vocab_size": shape.vocab_size,
        "attention.head_count": shape.num_attention_heads,
        "attention.head_count_kv": 1,
        "attention.q_lora_rank": shape.q_lora_rank,
        "attention.kv_lora_rank": latent,
        "attention.key_length": latent + shape.qk_rope_head_dim,
        "attention.value_length": latent,
        "attention.key_length_mla": shape.qk_head_dim,
        "attention.value_length_mla": shape.v_head_dim,
        "attention.layer_norm_rms_epsilon": shape.rms_norm_eps,
        "rope.dimension_count": shape.qk_rope_head_dim,
        "rope.freq_base": shape.rope_theta,
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": yarn.factor,
        "rope.scaling.original_context_length": yarn.original_max_position_embeddings,
        "rope.scaling.yarn_log_multiplier": 0.1 * yarn.mscale_all_dim,
        "expert_count": shape.n_routed_experts,
        "expert_used_count": shape.num_experts_per_tok,
        "expert_shared_count": shape.n_shared_experts,
        "expert_feed_forward_length": shape.moe_intermediate_size,
        "expert_weights_scale": shape.routed_scaling_factor,
        "expert_weights_norm": True,
        "expert_gating_func": SIGMOID_GATING,
        "expert_group_count": shape.n_group,
        "expert_group_used_count": shape.topk_group,
    }


def add_metadata(writer: gguf.GGUFWriter, values: dict[str, Any], prefix: str) -> None:
    adders = {
        bool: writer.add_bool,
        int: writer.add_uint32,
        float: writer.add_float32,
        str: writer.add_string,
    }
    for key, value in values.items():
        adders[type(value)](prefix + key, value)


def add_tokenizer(writer: gguf.GGUFWriter, tokenizer: Tokenizer) -> None:
    """The vocabulary in id order, the merges, and the types that llama.cpp's converter gives."""
    state = json_state(tokenizer)
    by_id = sorted(tokenizer.get_vocab(with_added_tokens=True).items(), key=lambda item: item[1])
    added = {token["content"] for token in state["added_tokens"]}
    types = []
    for token, _ in by_id:
        if token not in added:
            types.append(gguf.TokenType.NORMAL)
        elif "｜" in token:
            types.append(gguf.TokenType.CONTROL)
        else:
            types.append(gguf.TokenType.USER_DEFINED)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("deepseek-v3")
    writer.add_token_list([token for token, _ in by_id])
    writer.add_token_types(types)
    writer.add_token_merges([" ".join(pair) for pair in state["model"]["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_pad_token_id(2)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE.read_text(encoding="utf-8").rstrip("\n"))


def json_state(tokenizer: Tokenizer) -> dict[str, Any]:
    import json

    state: dict[str, Any] = json.loads(tokenizer.to_str())
    return state


def file_tensors(
    weights: dict[str, Tensor], types: dict[str, str]
) -> list[tuple[str, np.ndarray, gguf.GGMLQuantizationType]]:
    """Every tensor as it goes into the file, in the model's order."""
    out = []
    for name, weight in weights.items():
        kind = gguf.GGMLQuantizationType[types[name]]
        data = weight.float().cpu()
        if types[name] != "F32":
            data = packed(data, types[name])
        out.append((name, data.contiguous().numpy(), kind))
    return out


def split_evenly(tensors: list[tuple[str, np.ndarray, Any]]) -> list[list[Any]]:
    """Consecutive tensors into NUM_SHARDS parts of about the same number of bytes."""
    total, seen = sum(t[1].nbytes for t in tensors), 0
    parts: list[list[Any]] = [[] for _ in range(NUM_SHARDS)]
    for tensor in tensors:
        parts[min(NUM_SHARDS * seen // total, NUM_SHARDS - 1)].append(tensor)
        seen += tensor[1].nbytes
    return parts


def write_gguf(
    shape: Shape,
    weights: dict[str, Tensor],
    types: dict[str, str],
    tokenizer: Tokenizer,
    folder: Path,
) -> list[Path]:
    """Write the shards; the first carries all metadata, as llama.cpp's splitter leaves them."""
    tensors = file_tensors(weights, types)
    paths = []
    for number, part in enumerate(split_evenly(tensors)):
        path = folder / FILE_NAME.format(number + 1, NUM_SHARDS)
        writer = gguf.GGUFWriter(path, "deepseek2")
        if number == 0:
            writer.add_type(gguf.GGUFType.MODEL)
            writer.add_name("ktops demo")
            writer.add_license("apache-2.0")
            writer.add_languages(["en", "zh"])
            writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
            writer.add_file_type(MOSTLY_Q4_K_M)
            add_metadata(writer, architecture_metadata(shape), "deepseek2.")
            add_tokenizer(writer, tokenizer)
        writer.add_uint16("split.no", number)
        writer.add_uint16("split.count", NUM_SHARDS)
        writer.add_int32("split.tensors.count", len(tensors))
        for name, data, kind in part:
            writer.add_tensor(name, data, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        paths.append(path)
    return paths


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The tensors of exported shards, dequantised: what every reader of the files computes with."""
    weights = {}
    for path in sorted(folder.glob("*.gguf")):
        for tensor in gguf.GGUFReader(path).tensors:
            values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
            weights[tensor.name] = torch.from_numpy(values.copy())
    return weights


def write_config(shape: Shape, tokenizer: Tokenizer, folder: Path) -> None:
    """The config-only folder: what a Hugging Face repository has besides weights."""
    write_json(folder / "config.json", hf_config(shape))
    generation = {
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 2,
        "do_sample": True,
        "temperature": 0.6,
        "top_p": 0.95,
    }
    write_json(folder / "generation_config.json", generation)
    save_tokenizer(tokenizer, folder, shape.max_position_embeddings)
