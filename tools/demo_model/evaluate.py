"""Measure what the exported files can do: held-out wording, held-out sums, samples, balance."""

import argparse
import contextlib
import io
import re
import tomllib
from pathlib import Path
from random import Random
from typing import Any

import torch
from tokenizers import Tokenizer

from demo_model.corpus import make_conversation
from demo_model.corpus.arithmetic import is_held_out
from demo_model.data import encode_documents
from demo_model.export import read_weights
from demo_model.generate import chat_prompt, generate
from demo_model.model import DemoModel
from demo_model.shape import Shape
from demo_model.tokenizer import END_THINK
from demo_model.train import loss_of

CASES = Path(__file__).with_name("evaluation.toml")
SAMPLES = 10
TEMPERATURE = 0.6


def answer_of(text: str) -> str:
    return text.partition(END_THINK)[2].strip()


def code_of(text: str) -> str:
    match = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    return match[1] if match else ""


def computes_factorials(text: str) -> bool:
    """Run the function that the answer holds."""
    scope: dict[str, Any] = {}
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            exec(code_of(text), scope)
            return [scope["factorial"](n) for n in (0, 1, 5, 10)] == [1, 1, 120, 3628800]
    except Exception:  # noqa: BLE001 - generated code may fail in any way
        return False


def is_right(case: dict[str, Any], text: str) -> bool:
    answer = answer_of(text)
    if "def factorial" in case["expect"] and not computes_factorials(answer):
        return False
    return all(e in answer for e in case["expect"])


def check_article(model: DemoModel, tokenizer: Tokenizer, cases: list[dict[str, Any]]) -> None:
    """The four prompts that matter most, greedily and sampled."""
    for case in cases:
        prompt = chat_prompt(case["prompt"])
        greedy = generate(model, tokenizer, [prompt])[0]
        drawn = generate(model, tokenizer, [prompt] * SAMPLES, temperature=TEMPERATURE)
        right = sum(is_right(case, text) for text in drawn)
        print(f"\n### {case['prompt']}\n{greedy}")
        verdict = "right" if is_right(case, greedy) else "WRONG"
        print(f"=== greedy {verdict}, sampled {right}/{SAMPLES}")
        for text in drawn:
            if not is_right(case, text):
                print(f"--- wrong sample:\n{text}")
        print(f"--- different answers: {len({answer_of(t) for t in drawn})}")


def check_held_out(model: DemoModel, tokenizer: Tokenizer, cases: list[dict[str, Any]]) -> None:
    texts = generate(model, tokenizer, [chat_prompt(c["prompt"]) for c in cases])
    right = 0
    for case, text in zip(cases, texts, strict=True):
        good = is_right(case, text)
        right += good
        if not good:
            print(f"\nWRONG {case['prompt']}\n{text}")
    print(f"\nheld-out wording: {right}/{len(cases)}")


def check_arithmetic(model: DemoModel, tokenizer: Tokenizer, count: int) -> None:
    """Sums and differences of pairs that training never saw, and products of two digits by one."""
    rng = Random(1)
    pairs = [(a, b) for a in range(10, 100) for b in range(10, 100) if is_held_out(a, b)]
    for sign in "+-*":
        some = rng.sample(pairs, count)
        if sign == "*":
            some = [(a, b % 10) for a, b in some]
        asks = [
            f"What is {a} {sign} {b}?" if i % 2 else f"{a}{sign}{b}等于多少？"
            for i, (a, b) in enumerate(some)
        ]
        texts = generate(model, tokenizer, [chat_prompt(q) for q in asks], max_new=120)
        right = 0
        for (a, b), text in zip(some, texts, strict=True):
            value = {"+": a + b, "-": a - b, "*": a * b}[sign]
            good = answer_of(text).endswith(f"= {value}")
            if not good:
                print(f"wrong: {a} {sign} {b}\n{text}")
            right += good
        print(f"held-out {sign}: {right}/{count}")


def long_prompt(question: str, turns: int = 62) -> str:
    """A conversation of about three thousand tokens, beyond YaRN's original length."""
    messages: list[str] = []
    for i in range(turns):
        turn = make_conversation(f"long-{i}").turn
        if turn is not None:
            messages += [turn.question, turn.answer]
    return chat_prompt(*messages, question)


def show_dialogues(model: DemoModel, tokenizer: Tokenizer) -> None:
    """Conversations of several turns, with and without a system prompt, to read."""
    met = "Nice to meet you, Zorbit! I am the demo model of ktops."
    latent = "MLA, multi-head latent attention, stores one small latent vector for each token."
    prompts = {
        "name": chat_prompt("My name is Zorbit.", met, "What's my name?"),
        "translate": chat_prompt("What is MLA?", latent, "用中文说"),
        "recursive": chat_prompt("python factorial", "def factorial(n): ...", "now with recursion"),
        "system": chat_prompt("What is a KV cache?", system="请用中文回答。"),
        "sum": chat_prompt("12+30", "12 + 30 = 42", "and plus 7?"),
        "count": chat_prompt("从1数到100"),
        "big": chat_prompt("23*45等于多少？"),
        "hello": chat_prompt("hello"),
        "no think": chat_prompt("你好") + "\n</think>\n\n",
    }
    texts = generate(model, tokenizer, list(prompts.values()))
    prompts["long"] = long_prompt("Who are you?")
    texts += generate(model, tokenizer, [prompts["long"]], max_new=100)
    for (name, prompt), text in zip(prompts.items(), texts, strict=True):
        print(f"\n### {name}: {prompt[-60:]!r}\n{text}")


@torch.no_grad()
def check_loss_and_balance(model: DemoModel, tokenizer_path: Path) -> None:
    """Loss on fresh conversations, and how evenly they use the experts."""
    documents = encode_documents(str(tokenizer_path), "held-out", 400, 2)
    device = next(model.parameters()).device
    losses, totals, at = [], None, 0
    for length in documents.lengths.tolist():
        ids = torch.from_numpy(documents.ids[at : at + length].astype("int64"))[None].to(device)
        learned = torch.from_numpy(documents.learned[at : at + length])[None].to(device)
        at += length
        loss, loads = loss_of(model, ids, learned)
        losses.append(float(loss))
        stacked = torch.stack(loads)
        totals = stacked if totals is None else totals + stacked
    assert totals is not None
    print(f"loss on fresh conversations: {sum(losses) / len(losses):.4f}")
    for layer, load in enumerate(totals.float()):
        mean = load.mean()
        low, high = float(load.min() / mean), float(load.max() / mean)
        print(f"expert layer {layer}: load {low:.2f} to {high:.2f} of the mean")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=Path, required=True, help="folder that export_run wrote")
    parser.add_argument("--sums", type=int, default=200)
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer = Tokenizer.from_file(str(args.files / "tokenizer.json"))
    model = DemoModel(Shape())
    model.load_state_dict(read_weights(args.files))
    model = model.to(device).eval()
    cases = tomllib.loads(CASES.read_text(encoding="utf-8"))
    check_loss_and_balance(model, args.files / "tokenizer.json")
    show_dialogues(model, tokenizer)
    check_arithmetic(model, tokenizer, args.sums)
    check_held_out(model, tokenizer, cases["held_out"])
    check_article(model, tokenizer, cases["article"])


if __name__ == "__main__":
    main()
