"""A conversation on the terminal: history, one answer at a time, and a few commands."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace

from ktops.chat.client import ChatClient, ChatPiece, Message
from ktops.output import Output
from ktops_engine.errors import KtopsError
from ktops_engine.text import text

PROMPT = "> "
HELP = (
    text("/reset   forget the conversation"),
    text("/help    this list"),
    text("/exit    leave, as Ctrl-D does"),
    text("Ctrl-C   stop the answer; at the prompt: leave"),
)


@dataclass(frozen=True)
class Sampling:
    """What the user asked of every answer; None: the server's default."""

    temperature: float | None = None
    max_tokens: int | None = None


@dataclass
class Reply:
    """An answer so far. `finish_reason` stays empty when it was stopped half-way."""

    reasoning: str = ""
    answer: str = ""
    finish_reason: str = ""
    usage: dict[str, object] = field(default_factory=dict)

    def add(self, piece: ChatPiece) -> None:
        if piece.kind == "reasoning":
            self.reasoning += piece.text
        elif piece.kind == "answer":
            self.answer += piece.text
        else:
            self.finish_reason = piece.text
            self.usage = dict(piece.usage or {})


class Conversation:
    """The messages so far, and the server that continues them."""

    def __init__(self, client: ChatClient, model: str, sampling: Sampling) -> None:
        self._client = client
        self._model = model
        self._sampling = sampling
        self._messages: list[Message] = []

    @property
    def model(self) -> str:
        return self._model

    def ask(self, words: str, reply: Reply) -> Generator[ChatPiece]:
        """Send `words` and yield the answer's pieces, which are gathered in `reply` too.

        Question and answer join the history once there is some answer, even a stopped one;
        the reasoning never does, as the model expects. Line ends before the answer are dropped.
        """
        question = {"role": "user", "content": words}
        stream = self._client.stream(
            self._model,
            [*self._messages, question],
            temperature=self._sampling.temperature,
            max_tokens=self._sampling.max_tokens,
        )
        try:
            with closing(stream) as pieces:
                for piece in pieces:
                    if piece.kind == "answer" and not reply.answer:
                        piece = replace(piece, text=piece.text.lstrip("\n"))
                    reply.add(piece)
                    yield piece
        finally:
            if reply.answer:
                self._messages += [question, {"role": "assistant", "content": reply.answer}]

    def reset(self) -> None:
        """Forget every message."""
        self._messages.clear()


def converse(conversation: Conversation, output: Output) -> None:
    """Read questions and print answers until /exit or the end of the input.

    Ctrl-C stops a running answer; at the prompt it raises KeyboardInterrupt.
    """
    greeting = text(
        "Talking to {model}. /help lists the commands, /exit leaves.", model=conversation.model
    )
    output.note(greeting)
    while True:
        try:
            line = output.prompt(PROMPT).strip()
        except EOFError:
            output.note()
            return
        if line in ("/exit", "/quit"):
            return
        if line == "/reset":
            conversation.reset()
            output.note(text("The conversation is forgotten."))
        elif line.startswith("/"):
            if line != "/help":
                output.note(text("There is no command {command}.", command=line.split()[0]))
            for entry in HELP:
                output.note(entry)
        elif line:
            _answer(conversation, line, output)


def _answer(conversation: Conversation, words: str, output: Output) -> None:
    """Print one answer as it comes: the reasoning dimmed, then the answer."""
    reply = Reply()
    try:
        with closing(conversation.ask(words, reply)) as pieces:
            for piece in pieces:
                if piece.kind == "reasoning":
                    output.stream(piece.text, "dim")
                elif piece.kind == "answer":
                    begins = reply.answer == piece.text
                    output.stream("\n\n" if begins and reply.reasoning else "")
                    output.stream(piece.text)
        output.stream("\n")
        _note_early_end(reply, output)
    except KeyboardInterrupt:
        output.stream("\n")
        output.note(text("Stopped. Ctrl-C again leaves."))
    except KtopsError as error:
        output.stream("\n" if reply.reasoning or reply.answer else "")
        output.error(error)


def answer_once(conversation: Conversation, words: str, output: Output) -> None:
    """Ask one question and print nothing but the answer; with --json a document of it all."""
    reply = Reply()
    with closing(conversation.ask(words, reply)) as pieces:
        for piece in pieces:
            if piece.kind == "answer" and not output.is_json:
                output.stream(piece.text)
    _note_early_end(reply, output)
    if output.is_json:
        output.result({"model": conversation.model, **asdict(reply)}, human=())
    else:
        output.stream("\n")


def _note_early_end(reply: Reply, output: Output) -> None:
    """Say so when an answer was cut at its limit."""
    if reply.finish_reason == "length":
        said = text("the answer was cut at its limit")
        if "completion_tokens" in reply.usage:
            count = reply.usage["completion_tokens"]
            said = text("the answer was cut after {count} tokens", count=count)
        output.warn(said, text("--max-new-tokens raises the limit"))
