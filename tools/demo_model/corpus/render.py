"""A conversation as text in R1's chat format, split into what is given and what is learned."""

from random import Random

from demo_model.corpus.dialogue import Conversation
from demo_model.tokenizer import ASSISTANT, BOS, END_THINK, EOS, THINK, USER

Segment = tuple[str, bool]  # text, learned or not

EMPTY_THINKING = f"{THINK}\n\n{END_THINK}\n\n"


def prompt_text(conversation: Conversation) -> str:
    """Everything up to and including the last `<｜Assistant｜>`, as the chat template writes it."""
    assert conversation.turn is not None
    turns = "".join(f"{USER}{q}{ASSISTANT}{a}{EOS}" for q, a in conversation.history)
    return f"{BOS}{conversation.system}{turns}{USER}{conversation.turn.question}{ASSISTANT}"


def render(conversation: Conversation, seed: str) -> list[Segment]:
    """Segments are tokenised on their own: a model never sees a token across the seam."""
    if conversation.turn is None:
        return [(BOS, False), (conversation.text + EOS, True)]
    turn = conversation.turn
    prompt = prompt_text(conversation)
    if Random(f"think {seed}").random() < 0.03:
        return [(prompt + EMPTY_THINKING, False), (turn.answer + EOS, True)]
    learned = f"{turn.think}\n{END_THINK}\n\n{turn.answer}{EOS}"
    return [(prompt, False), (f"{THINK}\n", True), (learned, True)]
