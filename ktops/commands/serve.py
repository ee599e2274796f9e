"""`ktops serve`: load a model and answer the OpenAI API until told to stop."""

from __future__ import annotations

import signal
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from ktops.commandline import output_of
from ktops.launch.dummy import LoadFormat, read_load_format
from ktops.launch.stages import Order
from ktops.options import (
    CpuInfer,
    CtxSize,
    Force,
    GgufPath,
    GpuExperts,
    GpuMemory,
    Load,
    ModelPath,
    Numa,
    NumHiddenLayers,
    Yes,
)
from ktops.output import Output
from ktops.settings import DEFAULT_HOST, DEFAULT_PORT, Settings, load_settings
from ktops_engine.text import text

if TYPE_CHECKING:
    from ktops_engine.server import Address, ServerConfig

EXAMPLES = (
    ("ktops serve", "the default model, or what is here"),
    ("ktops serve r1-q4km --cpu-infer 65", "DeepSeek-R1, experts on 65 threads"),
    ("ktops serve r1-q4km --yes", "fetched first; again: it goes on"),
    ("ktops serve --gguf-path ./R1-GGUF --model-path ./R1", "files of your own"),
    ("ktops serve --host 0.0.0.0 --api-key KEY", "for the network"),
    ("ktops serve --port 0 -q", "a free port; prints the URL"),
)

COMMAND = ("ktops", "serve")
GRACE_S = 30.0


def serve(
    ctx: typer.Context,
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL", help="A name that `ktops models` lists.", show_default=False
        ),
    ] = None,
    cpu_infer: CpuInfer = None,
    gpu_memory: GpuMemory = None,
    gpu_experts: GpuExperts = None,
    numa: Numa = None,
    host: Annotated[
        str | None,
        typer.Option(help=f"Address to listen on; default: {DEFAULT_HOST}.", show_default=False),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(help=f"Port; default: {DEFAULT_PORT}; 0: any free one.", show_default=False),
    ] = None,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(help="Longest answer when a request sets no limit.", show_default=False),
    ] = None,
    ctx_size: CtxSize = None,
    gguf_path: GgufPath = None,
    model_path: ModelPath = None,
    served_model_name: Annotated[
        str | None, typer.Option(help="Name that clients use for the model.", show_default=False)
    ] = None,
    api_key: Annotated[
        str | None, typer.Option(help="Key that clients must send.", show_default=False)
    ] = None,
    load_format: Load = LoadFormat.AUTO,
    num_hidden_layers: NumHiddenLayers = None,
    yes: Yes = False,
    force: Force = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done; do nothing.")
    ] = False,
) -> None:
    """Load a model and answer the OpenAI API until Ctrl-C.

    Without MODEL: the default of the settings, else the one model that is
    downloaded, else the embedded demo. What is missing is fetched and built
    first, and the doctor's checks are made; stopped anywhere, the same command
    goes on from there.
    """
    output = output_of(ctx)
    dummy = read_load_format(load_format, num_hidden_layers)
    settings = load_settings(
        cpu_infer=cpu_infer,
        gpu_memory=gpu_memory,
        gpu_experts=gpu_experts,
        numa=numa,
        host=host,
        port=port,
        max_new_tokens=max_new_tokens,
        ctx_size=ctx_size,
        api_key=api_key,
    )
    _warn_when_open(output, settings)
    order = Order(COMMAND, model, gguf_path, model_path, assume_yes=yes, force=force, dummy=dummy)
    if dry_run:
        from ktops.launch.preview import preview

        preview(output, settings, order)
        return
    _run(output, settings, order, served_model_name)


def _warn_when_open(output: Output, settings: Settings) -> None:
    from ktops.launch.serving import is_loopback

    if settings.api_key is None and not is_loopback(settings.host):
        output.warn(
            text(
                "anyone who reaches {host} port {port} can use this server: it asks for no key",
                host=settings.host,
                port=settings.port,
            ),
            text("ktops serve --api-key KEY, or KTOPS_API_KEY, or --host 127.0.0.1"),
        )


def _run(output: Output, settings: Settings, order: Order, served_model_name: str | None) -> None:
    """Check, plan, load and serve. Raises typer.Exit with the signal's status."""
    from ktops.launch.background_server import BackgroundServer, signals_stop
    from ktops.launch.progress import LoadView
    from ktops.launch.serving import load_engine, prepare
    from ktops_engine.server import ModelHandle, create_app, open_listener

    open_listener(settings.host, settings.port).close()  # a taken port is found before all else
    prepared = prepare(output, settings, order, served_model_name=served_model_name)
    handle = ModelHandle()
    with (
        open_listener(settings.host, settings.port) as listener,
        LoadView(output) as view,
        signals_stop(handle, partial(_say_stop, output)) as received,
    ):

        def on_ready(address: Address) -> None:
            view.finish()
            _say_ready(output, address.url, prepared.server_config)

        server = BackgroundServer(
            create_app(handle, prepared.server_config),
            handle,
            listener,
            grace_s=GRACE_S,
            load=lambda: load_engine(output, prepared, view, handle),
            on_ready=on_ready,
        )
        server.start()
        server.wait()
    if received:
        raise typer.Exit(128 + received[0])


def _say_ready(output: Output, url: str, config: ServerConfig) -> None:
    """The URL, the model's name and a line to paste; the bare URL for a script."""
    from ktops.launch.serving import curl_line

    curl = curl_line(url, config.model_id, with_key=config.api_key is not None)
    output.event("ready", url=url, model=config.model_id)
    if not output.is_json:
        ready = text("{url}   model {model}   Ctrl-C stops", url=url, model=config.model_id)
        output.stage("ready", ready)
        output.result({}, human=["", f"  {curl}"], quiet=[url])


def _say_stop(output: Output, received: signal.Signals) -> None:
    output.stage(
        "stop",
        text(
            "{signal}: answers in flight get {seconds} s, again: none",
            signal=received.name,
            seconds=f"{GRACE_S:.0f}",
        ),
    )
    output.event("stop", signal=received.name)
