"""Splits an answer into its reasoning (`<think>…</think>`, always first) and its content."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

from ktops_engine.server.stop_strings import partial_suffix

THINK_OPEN = "<think>"
THINK_CLOSE = "</think>"


@dataclass(frozen=True)
class Delta:
    """What one step adds to the two texts of an answer."""

    reasoning: str = ""
    content: str = ""

    def __add__(self, other: Delta) -> Delta:
        return Delta(self.reasoning + other.reasoning, self.content + other.content)

    def __bool__(self) -> bool:
        return bool(self.reasoning or self.content)


class _State(Enum):
    START = auto()  # nothing but whitespace and a part of <think> so far
    REASONING_START = auto()  # only newlines of the reasoning so far
    REASONING = auto()
    CONTENT_START = auto()  # only newlines since </think>
    CONTENT = auto()


class ReasoningSplit:
    """Text goes in by pieces; tags, and the newlines next to them, do not come out.

    `opened` says that the prompt ended inside the reasoning, as R1's template does. Such an answer
    may still begin with a second `<think>`. Without it, only an answer that begins with the tag
    has reasoning. An answer cut off before `</think>` is all reasoning.
    """

    def __init__(self, *, opened: bool) -> None:
        self._opened = opened
        self._state = _State.START
        self._held = ""

    @property
    def in_reasoning(self) -> bool:
        """Whether the text so far, were it to end here, would end in the reasoning."""
        if self._state is _State.START:
            return self._opened
        return self._state in (_State.REASONING_START, _State.REASONING)

    def push(self, text: str) -> Delta:
        """The parts of both texts that are now certain."""
        delta = Delta()
        self._held += text
        while self._held:
            before = self._state, self._held
            delta += self._advance()
            if (self._state, self._held) == before:
                break
        return delta

    def finish(self) -> Delta:
        """What was held back, when the text ends."""
        held, self._held = self._held, ""
        return Delta(reasoning=held) if self.in_reasoning else Delta(content=held)

    def _advance(self) -> Delta:
        """One step of the state machine over the held text."""
        match self._state:
            case _State.START:
                self._leave_start()
            case _State.REASONING_START:
                self._held = self._held.lstrip("\n")
                if self._held:
                    self._state = _State.REASONING
            case _State.REASONING:
                return self._take_reasoning()
            case _State.CONTENT_START:
                self._held = self._held.lstrip("\n")
                if self._held:
                    self._state = _State.CONTENT
            case _State.CONTENT:
                content, self._held = self._held, ""
                return Delta(content=content)
        return Delta()

    def _leave_start(self) -> None:
        text = self._held.lstrip()
        if text.startswith(THINK_OPEN):
            self._held = text[len(THINK_OPEN) :]
            self._state = _State.REASONING_START
        elif not THINK_OPEN.startswith(text):
            self._state = _State.REASONING_START if self._opened else _State.CONTENT

    def _take_reasoning(self) -> Delta:
        end = self._held.find(THINK_CLOSE)
        if end >= 0:
            reasoning = self._held[:end].rstrip("\n")
            self._held = self._held[end + len(THINK_CLOSE) :]
            self._state = _State.CONTENT_START
            return Delta(reasoning=reasoning)
        # Newlines before a closing tag are not part of the reasoning: hold them with the tag.
        certain = self._held[: len(self._held) - partial_suffix(self._held, THINK_CLOSE)]
        certain = certain.rstrip("\n")
        self._held = self._held[len(certain) :]
        return Delta(reasoning=certain)
