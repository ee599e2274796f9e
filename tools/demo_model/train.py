"""Train the demo model from scratch: AdamW, warm-up, constant rate, linear decay to zero.

In the decay phase every weight is used as the file will store it (straight-through gradients), and
sequences are four times as long, so that long conversations work too.
"""

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor

from demo_model.data import Documents, conversation_texts, encode_documents, pack
from demo_model.model import DemoModel
from demo_model.shape import Shape
from demo_model.tokenizer import train_tokenizer

TOKENIZER_TEXTS = 20_000
SEED = "ktops-demo"


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the result besides the corpus and the shape."""

    steps: int = 3500
    batch_tokens: int = 65_536
    window: int = 1024
    long_window: int = 4096
    documents: int = 700_000
    learning_rate: float = 2e-3
    warmup: int = 200
    decay_share: float = 0.3
    weight_decay: float = 0.05
    balance_rate: float = 1e-3
    seed: int = 0

    @property
    def decay_start(self) -> int:
        return int(self.steps * (1 - self.decay_share))

    def rate(self, step: int) -> float:
        """Learning rate of a step, counted from 0."""
        if step < self.decay_start:
            return self.learning_rate * min(1.0, (step + 1) / self.warmup)
        return self.learning_rate * (self.steps - step) / (self.steps - self.decay_start)


def batches(
    documents: Documents, window: int, rows: int, rng: np.random.Generator, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless (ids, learned), both [rows, window + 1]; packed anew every epoch."""
    while True:
        ids, learned = pack(documents, window, rng)
        order = rng.permutation(len(ids))
        for at in range(0, len(order) - rows + 1, rows):
            some = order[at : at + rows]
            pair = torch.from_numpy(ids[some].astype(np.int64)), torch.from_numpy(learned[some])
            yield pair[0].to(device, non_blocking=True), pair[1].to(device, non_blocking=True)


def loss_of(model: DemoModel, ids: Tensor, learned: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Mean cross-entropy over the learned ids, and the experts' loads of every layer."""
    hidden, loads = model.hidden(ids[:, :-1])
    keep = learned[:, 1:]
    logits = F.linear(hidden[keep], model.output()).float()
    return F.cross_entropy(logits, ids[:, 1:][keep]), loads


@torch.no_grad()
def balance(model: DemoModel, loads: list[Tensor], rate: float) -> None:
    """Auxiliary-loss-free balancing: raise the bias of idle experts, lower that of busy ones.

    The smallest bias stays zero, so that biased scores stay positive and every implementation of
    the group limit (masking by zero or by minus infinity) chooses the same experts.
    """
    routers = [block.exp_probs_b for block in model.blk if not block.dense]
    for router, load in zip(routers, loads, strict=True):
        counts = load.float()
        router.bias += rate * (counts.mean() - counts).sign()
        router.bias -= router.bias.min()


def make_optimizer(model: DemoModel, recipe: Recipe) -> torch.optim.Optimizer:
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    groups = [
        {"params": matrices, "weight_decay": recipe.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    fused = matrices[0].device.type == "cuda"
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.95), fused=fused)


def train(model: DemoModel, documents: Documents, recipe: Recipe) -> None:
    """Run all steps; prints loss, speed and the worst expert load now and then."""
    device = next(model.parameters()).device
    rng = np.random.default_rng(recipe.seed)
    optimizer = make_optimizer(model, recipe)
    stream = batches(documents, recipe.window, recipe.batch_tokens // recipe.window, rng, device)
    began = time.time()
    for step in range(recipe.steps):
        if step == recipe.decay_start:
            model.set_fake_quant(True)
            rows = recipe.batch_tokens // recipe.long_window
            stream = batches(documents, recipe.long_window, rows, rng, device)
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate(step)
        ids, learned = next(stream)
        with torch.autocast(device.type, torch.bfloat16):
            loss, loads = loss_of(model, ids, learned)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        balance(
            model, loads, recipe.balance_rate * min(1.0, recipe.rate(step) / recipe.learning_rate)
        )
        if step % 100 == 0 or step == recipe.steps - 1:
            worst = max(float(load.max() / load.float().mean()) for load in loads)
            speed = (step + 1) * recipe.batch_tokens / (time.time() - began)
            print(
                f"step {step:5d}  loss {float(loss.detach()):.4f}  grad {float(norm):.2f}  "
                f"busiest expert {worst:.2f}x  {speed / 1e3:.0f}k tok/s  "
                f"{time.time() - began:.0f} s",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for checkpoint and tokenizer"
    )
    parser.add_argument("--steps", type=int, default=Recipe.steps)
    parser.add_argument("--documents", type=int, default=Recipe.documents)
    parser.add_argument("--batch-tokens", type=int, default=Recipe.batch_tokens)
    parser.add_argument("--learning-rate", type=float, default=Recipe.learning_rate)
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--compile", action="store_true", help="compile the layers first")
    args = parser.parse_args()
    recipe = Recipe(
        steps=args.steps,
        documents=args.documents,
        batch_tokens=args.batch_tokens,
        learning_rate=args.learning_rate,
    )
    args.out.mkdir(parents=True, exist_ok=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    shape, began = Shape(), time.time()
    tokenizer: Tokenizer = train_tokenizer(
        conversation_texts(f"{SEED}-tokenizer", TOKENIZER_TEXTS), shape.vocab_size
    )
    tokenizer.save(str(args.out / "tokenizer.json"))
    print(f"tokenizer {time.time() - began:.0f} s", flush=True)
    documents = encode_documents(
        str(args.out / "tokenizer.json"), SEED, recipe.documents, args.processes
    )
    share = documents.learned.mean()
    print(
        f"corpus {len(documents.ids) / 1e6:.1f}M tokens, {share:.0%} learned, "
        f"{time.time() - began:.0f} s"
    )
    torch.manual_seed(recipe.seed)
    torch.set_float32_matmul_precision("high")
    model = DemoModel(shape).to(device)
    if args.compile:
        for block in model.blk:
            block.compile()
    print(
        f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f}M parameters on {device}",
        flush=True,
    )
    train(model, documents, recipe)
    state = {name: tensor.cpu() for name, tensor in model.state_dict().items()}
    torch.save(state, args.out / "model.pt")


if __name__ == "__main__":
    main()
