"""Text from the training model: plain batched decoding that recomputes the whole sequence."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor

from demo_model.model import DemoModel
from demo_model.tokenizer import ASSISTANT, BOS, THINK, USER

EOS_ID, PAD_ID = 1, 2


def chat_prompt(*messages: str, system: str = "") -> str:
    """User and assistant messages in turn, ending where the model thinks."""
    marks = (USER, ASSISTANT)
    text = "".join(
        marks[i % 2] + m + ("<｜end▁of▁sentence｜>" if i % 2 else "")
        for i, m in enumerate(messages)
    )
    return f"{BOS}{system}{text}{ASSISTANT}{THINK}\n"


def pick(logits: Tensor, temperature: float, top_p: float, rng: torch.Generator) -> Tensor:
    """logits: [batch, vocab] float32. Greedy at temperature 0, nucleus sampling otherwise."""
    if temperature == 0:
        return logits.argmax(-1)
    probabilities, order = (logits / temperature).softmax(-1).sort(-1, descending=True)
    before = probabilities.cumsum(-1) - probabilities
    probabilities = torch.where(before < top_p, probabilities, 0.0)
    drawn = torch.multinomial(probabilities, 1, generator=rng)
    return order.gather(-1, drawn)[:, 0]


@torch.no_grad()
def generate(
    model: DemoModel,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    *,
    max_new: int = 320,
    temperature: float = 0.0,
    top_p: float = 0.95,
    seed: int = 0,
) -> list[str]:
    """The continuations, special tokens kept, the end token left out."""
    device = next(model.parameters()).device
    encoded = [tokenizer.encode(p, add_special_tokens=False).ids for p in prompts]
    lengths = torch.tensor([len(e) for e in encoded], device=device)
    width = max(map(len, encoded))
    ids = torch.full((len(encoded), width + max_new), PAD_ID, device=device)
    for row, some in enumerate(encoded):
        ids[row, : len(some)] = torch.tensor(some, device=device)
    start, rows = lengths.clone(), torch.arange(len(encoded), device=device)
    done = torch.zeros_like(lengths, dtype=torch.bool)
    rng = torch.Generator(device).manual_seed(seed)
    for step in range(max_new):
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            hidden = model.hidden(ids[:, : width + step])[0]
            logits = F.linear(hidden[rows, lengths - 1], model.output()).float()
        token = pick(logits, temperature, top_p, rng)
        done |= token == EOS_ID
        if bool(done.all()):
            break
        ids[rows, lengths] = torch.where(done, PAD_ID, token)
        lengths += (~done).long()
    spans = zip(ids.tolist(), start.tolist(), lengths.tolist(), strict=True)
    return [tokenizer.decode(row[a:b], skip_special_tokens=False) for row, a, b in spans]
