"""The only place that knows what fits where, and how fast it can be. Pure: no torch, no I/O.

`place` puts a model on a machine, `place_served` in a way that this version's engine computes,
`plan` does that and refuses what does not fit, `predict` says how fast a placement can be. The
engine, the doctor, the server and `ktops plan` all ask here.
"""

from ktops_engine.plan.fitting import Lack, lack_of_ram, largest_context, plan
from ktops_engine.plan.flops import token_flops
from ktops_engine.plan.hot_experts import ExpertUse, choose_hot
from ktops_engine.plan.model_bytes import (
    WEIGHT_PARTS,
    LayerBytes,
    ModelBytes,
    ModelFacts,
    Part,
    describe_q4_k_m,
    facts_of_files,
    tensors_q4_k_m,
)
from ktops_engine.plan.placement import (
    DEFAULT_CTX_SIZE,
    every_token_gpu_bytes,
    least_gpu_bytes,
    place,
    usable_bytes,
)
from ktops_engine.plan.predict import Prediction, Unknown, predict, predict_prompt
from ktops_engine.plan.predict_prompt import PromptPrediction
from ktops_engine.plan.resources import Resource
from ktops_engine.plan.served import place_served
from ktops_engine.plan.shares import Placement, Share
from ktops_engine.plan.sizes import BLOCK_SIZE, SPARE_RAM_SHARE, cache_bytes_per_token, kv_up_bytes
from ktops_engine.plan.threads import MEASURED_BYTES, best_threads

__all__ = [
    "BLOCK_SIZE",
    "DEFAULT_CTX_SIZE",
    "MEASURED_BYTES",
    "SPARE_RAM_SHARE",
    "WEIGHT_PARTS",
    "ExpertUse",
    "Lack",
    "LayerBytes",
    "ModelBytes",
    "ModelFacts",
    "Part",
    "Placement",
    "Prediction",
    "PromptPrediction",
    "Resource",
    "Share",
    "Unknown",
    "best_threads",
    "cache_bytes_per_token",
    "choose_hot",
    "describe_q4_k_m",
    "every_token_gpu_bytes",
    "facts_of_files",
    "kv_up_bytes",
    "lack_of_ram",
    "largest_context",
    "least_gpu_bytes",
    "place",
    "place_served",
    "plan",
    "predict",
    "predict_prompt",
    "tensors_q4_k_m",
    "token_flops",
    "usable_bytes",
]
