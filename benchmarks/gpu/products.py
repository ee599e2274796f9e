"""The products of one R1 layer with the tokens of a decode step, and of the head."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch

from gpu.timing import Call, Case, num_copies
from gpu.weights import activations, matrix, matrix_bytes
from ktops_engine.gguf import QuantType
from ktops_engine.kernels.gemv import gemv, gemv_gate_up, gemv_heads, gemv_stacked

HEADS = 128
Q_A_ROWS = 1536


@dataclass(frozen=True)
class Product:
    """`kind`: one matrix, two with their rows below each other, the two of gate and up, or one for
    each head."""

    name: str
    rows: int
    cols: int
    types: tuple[QuantType, ...]
    kind: str = "one"

    @property
    def num_matrices(self) -> int:
        return {"one": 1, "stacked": 1, "gate_up": 2, "heads": HEADS}[self.kind]


Q4, Q6 = QuantType.Q4_K, QuantType.Q6_K
PRODUCTS = (
    Product("q_a and kv_a", 2112, 7168, (Q4,), "stacked"),
    Product("q_b", 24576, 1536, (Q4,)),
    Product("k_up by heads", 512, 128, (QuantType.Q5_0, QuantType.Q8_0), "heads"),
    Product("v_up by heads", 128, 512, (Q4,), "heads"),
    Product("output", 7168, 16384, (Q4,)),
    Product("dense gate and up", 18432, 7168, (Q4,), "gate_up"),
    Product("dense down", 7168, 18432, (Q4, Q6)),
    Product("shared gate and up", 2048, 7168, (Q4,), "gate_up"),
    Product("shared down", 7168, 2048, (Q4, Q6)),
    Product("head", 129280, 7168, (Q6,)),
)


def cases(all_tokens: list[int], types: list[QuantType]) -> Iterator[Case]:
    """Every product with every number of tokens, in its own types or those given."""
    for product in PRODUCTS:
        for type in types or product.types:
            if product.cols % type.block_size:
                continue
            size = matrix_bytes(type, product.rows, product.cols) * product.num_matrices
            for tokens in all_tokens:
                flops = 2 * tokens * product.rows * product.cols * product.num_matrices
                name = f"{product.name} {product.rows} x {product.cols} {type.name}"
                prepare = partial(_calls, product, type, tokens, size)
                yield Case("products", name, tokens, prepare, size, flops)


def _calls(
    product: Product, type: QuantType, tokens: int, num_bytes: int, wanted: int
) -> list[Call]:
    rows, cols = product.rows, product.cols
    copies = range(num_copies(num_bytes, wanted))
    if product.kind == "heads":
        x = activations(tokens, HEADS, cols)
        return [partial(gemv_heads, matrix(type, rows, cols, HEADS), x) for _ in copies]
    x = activations(tokens, cols)
    if product.kind == "gate_up":
        return [
            partial(gemv_gate_up, matrix(type, rows, cols), matrix(type, rows, cols), x)
            for _ in copies
        ]
    if product.kind == "stacked":
        parts = (Q_A_ROWS, rows - Q_A_ROWS)
        pairs = [tuple(matrix(type, part, cols) for part in parts) for _ in copies]
        return [partial(gemv_stacked, top, below, x) for top, below in pairs]
    if rows == 7168:  # added to the residual stream
        residual = torch.zeros(tokens, rows, device="cuda")
        return [partial(gemv, matrix(type, rows, cols), x, add_to=residual) for _ in copies]
    return [partial(gemv, matrix(type, rows, cols), x, out_dtype=torch.float32) for _ in copies]
