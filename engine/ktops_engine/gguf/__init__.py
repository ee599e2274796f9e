"""GGUF files: shards, metadata, the tensor table and reads of single tensors, without torch."""

from ktops_engine.gguf.dequantize import dequantize
from ktops_engine.gguf.model import GgufModel, open_gguf
from ktops_engine.gguf.types import QuantType, TensorInfo

__all__ = ["GgufModel", "QuantType", "TensorInfo", "dequantize", "open_gguf"]
