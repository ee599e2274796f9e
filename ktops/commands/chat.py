"""`ktops chat`: a conversation in the terminal, with a running server or one of its own."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Annotated

import typer

from ktops.chat.client import ChatClient
from ktops.chat.conversation import Conversation, Sampling, answer_once, converse
from ktops.commandline import output_of
from ktops.launch.stages import Order
from ktops.options import (
    CpuInfer,
    CtxSize,
    Force,
    GgufPath,
    GpuExperts,
    GpuMemory,
    ModelPath,
    Numa,
    Yes,
)
from ktops.output import Mode, Output
from ktops.settings import Settings, load_settings
from ktops_engine.errors import EXIT_USAGE, KtopsError
from ktops_engine.text import text

COMMAND = ("ktops", "chat")
LOOPBACK = "127.0.0.1"
GRACE_S = 0.0  # whoever leaves the conversation waits for no answer

EXAMPLES = (
    ("ktops chat", "the default model, or what is here"),
    ("ktops chat --url http://127.0.0.1:10002", "with a server that runs already"),
    ('ktops chat -p "Who are you?"', "one question; prints the answer"),
    ("ktops chat < question.txt > answer.txt", "the same from a file"),
    ("ktops chat --temperature 0", "always the likeliest word"),
)


def chat(
    ctx: typer.Context,
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL",
            help="A name that `ktops models` lists, or that the server at --url lists.",
            show_default=False,
        ),
    ] = None,
    url: Annotated[
        str | None, typer.Option(help="A running server to talk to.", show_default=False)
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Option("--prompt", "-p", help="Ask this and leave.", show_default=False),
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(help="0: no chance; default: the model's own.", show_default=False),
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(help="Longest answer, in tokens.", show_default=False)
    ] = None,
    cpu_infer: CpuInfer = None,
    gpu_memory: GpuMemory = None,
    gpu_experts: GpuExperts = None,
    numa: Numa = None,
    ctx_size: CtxSize = None,
    gguf_path: GgufPath = None,
    model_path: ModelPath = None,
    api_key: Annotated[
        str | None, typer.Option(help="Key that the server asks for.", show_default=False)
    ] = None,
    yes: Yes = False,
    force: Force = False,
) -> None:
    """Talk to a model in this terminal: reasoning dimmed, then the answer.

    With a question in -p or on standard input, print the answer and nothing else.
    """
    output = output_of(ctx)
    settings = load_settings(
        max_new_tokens=max_new_tokens,
        cpu_infer=cpu_infer,
        gpu_memory=gpu_memory,
        gpu_experts=gpu_experts,
        numa=numa,
        ctx_size=ctx_size,
        api_key=api_key,
    )
    order = Order(COMMAND, model, gguf_path, model_path, assume_yes=yes, force=force)
    question = _question(prompt, output)
    sampling = Sampling(temperature, settings.max_new_tokens)
    # What is printed while the engine starts is for a person in front of a conversation only.
    quiet = output if question is None else replace(output, mode=Mode.QUIET)
    with (
        _server(url, quiet, settings, order) as (address, name),
        ChatClient(address, settings.api_key) as client,
    ):
        conversation = Conversation(client, name or client.model_id(), sampling)
        if question is None:
            converse(conversation, output)
        else:
            answer_once(conversation, question, output)


def _question(prompt: str | None, output: Output) -> str | None:
    """The one question to answer; None: a person sits at the terminal and asks many."""
    if prompt is None and output.can_ask:
        return None
    words = prompt
    if words is None:
        words = sys.stdin.buffer.read().decode("utf-8", "replace")
    if not words.strip():
        raise KtopsError(
            "empty-prompt",
            text("there is nothing to ask: the question is empty"),
            'ktops chat -p "Who are you?"',
            exit_status=EXIT_USAGE,
        )
    return words.strip()


@contextmanager
def _server(
    url: str | None, output: Output, settings: Settings, order: Order
) -> Iterator[tuple[str, str | None]]:
    """The URL of the server to talk to, and the model's name there (None: the first it lists)."""
    if url is not None:
        if order.gguf_path or order.model_path:
            raise KtopsError(
                "usage",
                text(
                    "--url names a server that has its model; --gguf-path and --model-path do not "
                    "go with it"
                ),
                f"ktops chat --url {url}",
                exit_status=EXIT_USAGE,
            )
        yield url, order.model
        return
    with _own_server(output, settings, order) as address:
        yield address, None


@contextmanager
def _own_server(output: Output, settings: Settings, order: Order) -> Iterator[str]:
    """Load a model, serve it on a free loopback port, and yield the URL. Leaving stops it all."""
    from ktops.launch.background_server import BackgroundServer
    from ktops.launch.progress import LoadView
    from ktops.launch.serving import load_engine, prepare
    from ktops_engine.server import ModelHandle, create_app, open_listener

    prepared = prepare(output, settings, order)
    handle = ModelHandle()
    with open_listener(LOOPBACK, 0) as listener:
        port = listener.getsockname()[1]
        try:
            with LoadView(output) as view:
                handle.set_ready(load_engine(output, prepared, view, handle))
                view.finish()
            app = create_app(handle, prepared.server_config)
            server = BackgroundServer(app, handle, listener, grace_s=GRACE_S)
            try:
                server.start()
                yield f"http://{LOOPBACK}:{port}"
            finally:
                server.stop()
        finally:
            handle.shutdown()
