"""What a deepseek2 model is, from config.json and GGUF metadata. See `resolve_model_config`."""

from ktops_engine.model_config.config import ModelConfig, resolve_model_config
from ktops_engine.model_config.rope import YarnScaling

__all__ = ["ModelConfig", "YarnScaling", "resolve_model_config"]
