"""Shapes of expert layers: those of known models by name, any other by its numbers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from ktops_engine.errors import EXIT_USAGE, KtopsError
from ktops_engine.gguf import QuantType
from ktops_engine.text import text


@dataclass(frozen=True)
class LayerShape:
    """Gate and up are [moe_intermediate_size, hidden_size] an expert, down the other way round."""

    hidden_size: int
    moe_intermediate_size: int
    num_experts: int
    num_experts_per_tok: int
    gate_type: QuantType
    down_type: QuantType

    @property
    def expert_bytes(self) -> int:
        """Bytes of one expert's three matrices."""
        count = self.hidden_size * self.moe_intermediate_size
        return 2 * self.gate_type.nbytes(count) + self.down_type.nbytes(count)

    @property
    def layer_bytes(self) -> int:
        """Bytes of all experts."""
        return self.num_experts * self.expert_bytes

    def flops(self, num_tokens: int) -> int:
        """Products and sums of `num_tokens` tokens through their experts."""
        count = self.hidden_size * self.moe_intermediate_size
        return 2 * 3 * num_tokens * self.num_experts_per_tok * count


def q4_k_m_shape(
    hidden_size: int, moe_intermediate_size: int, num_experts: int, num_experts_per_tok: int
) -> LayerShape:
    """A shape with the types that Q4_K_M files give to most layers: rows that are not whole blocks
    of 256 are Q5_0. ValueError for rows that are not whole blocks of 32 either."""
    gate = QuantType.Q5_0 if hidden_size % QuantType.Q4_K.block_size else QuantType.Q4_K
    down = QuantType.Q5_0 if moe_intermediate_size % QuantType.Q6_K.block_size else QuantType.Q6_K
    for size in (hidden_size, moe_intermediate_size):
        if size <= 0 or size % QuantType.Q5_0.block_size:
            raise ValueError(
                text("{size} is no multiple of {step}", size=size, step=QuantType.Q5_0.block_size)
            )
    if not 1 <= num_experts_per_tok <= num_experts:
        raise ValueError(
            text(
                "{top_k} of {experts} experts a token",
                top_k=num_experts_per_tok,
                experts=num_experts,
            )
        )
    return LayerShape(
        hidden_size, moe_intermediate_size, num_experts, num_experts_per_tok, gate, down
    )


SHAPES: Mapping[str, LayerShape] = MappingProxyType(
    {
        "r1": q4_k_m_shape(7168, 2048, 256, 8),
        "v2-lite": q4_k_m_shape(2048, 1408, 64, 6),
        "demo": q4_k_m_shape(256, 256, 8, 2),
    }
)


def parse_shape(given: str) -> LayerShape:
    """The shape called `given`, or described by it: HIDDENxINTERMEDIATExEXPERTSxTOPK.

    Raises KtopsError "invalid-shape" (status 2).
    """
    if given in SHAPES:
        return SHAPES[given]
    try:
        if not re.fullmatch(r"\d+x\d+x\d+x\d+", given):
            raise ValueError(text("four numbers are needed"))
        return q4_k_m_shape(*map(int, given.split("x")))
    except ValueError as error:
        raise KtopsError(
            "invalid-shape",
            text(
                "{given!r} is no shape of an expert layer: {reason}; known are {names}",
                given=given,
                reason=error.args[0],
                names=", ".join(SHAPES),
            ),
            "ktops bench kernels --shape 7168x2048x64x8",
            exit_status=EXIT_USAGE,
        ) from error
