"""`ktops serve`: load a model and answer the OpenAI API until told to stop."""

from __future__ import annotations

import signal
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from ktops.commandline import output_of
from ktops.hub.choose import ModelChoice, choose_model
from ktops.options import CpuInfer, CtxSize, GgufPath, ModelPath
from ktops.output import Output
from ktops.settings import DEFAULT_HOST, DEFAULT_PORT, Settings, load_settings

if TYPE_CHECKING:
    from ktops_engine.server import Address, ServerConfig

EXAMPLES = (
    ("ktops serve", "the default model, or what is here"),
    ("ktops serve r1-q4km --cpu-infer 65", "DeepSeek-R1, experts on 65 threads"),
    ("ktops serve --gguf-path ./R1-GGUF --model-path ./R1", "files of your own"),
    ("ktops serve --host 0.0.0.0 --api-key KEY", "for the network"),
    ("ktops serve --port 0 -q", "a free port; prints the URL"),
)

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
) -> None:
    """Load a model and answer the OpenAI API until Ctrl-C.

    Without MODEL: the default of the settings, else the one model that is
    downloaded, else the embedded demo. Missing native kernels are built first.
    """
    output = output_of(ctx)
    settings = load_settings(
        cpu_infer=cpu_infer,
        host=host,
        port=port,
        max_new_tokens=max_new_tokens,
        ctx_size=ctx_size,
        api_key=api_key,
    )
    choice = choose_model(model, settings, gguf_path=gguf_path, model_path=model_path)
    output.stage("model", f"{choice.name or choice.gguf_path} ({choice.reason})")
    _warn_when_open(output, settings)
    _run(output, settings, choice, served_model_name)


def _warn_when_open(output: Output, settings: Settings) -> None:
    from ktops.serving import is_loopback

    if settings.api_key is None and not is_loopback(settings.host):
        output.warn(
            f"anyone who reaches {settings.host} port {settings.port} can use this server: "
            "it asks for no key",
            "ktops serve --api-key KEY, or KTOPS_API_KEY, or --host 127.0.0.1",
        )


def _run(
    output: Output, settings: Settings, choice: ModelChoice, served_model_name: str | None
) -> None:
    """Check, plan, load and serve. Raises typer.Exit with the signal's status."""
    from ktops.background_server import BackgroundServer, signals_stop
    from ktops.progress import LoadView
    from ktops.serving import load_engine, prepare
    from ktops_engine.server import ModelHandle, create_app, open_listener

    with open_listener(settings.host, settings.port) as listener:
        host, port = listener.getsockname()[:2]
        output.stage("check", f"port {port} on {host} is free")
        prepared = prepare(output, settings, choice, served_model_name=served_model_name)
        handle = ModelHandle()
        with LoadView(output) as view, signals_stop(handle, partial(_say_stop, output)) as received:

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
    from ktops.serving import curl_line

    curl = curl_line(url, config.model_id, with_key=config.api_key is not None)
    output.event("ready", url=url, model=config.model_id)
    if not output.is_json:
        output.stage("ready", f"{url}   model {config.model_id}   Ctrl-C stops")
        output.result({}, human=["", f"  {curl}"], quiet=[url])


def _say_stop(output: Output, received: signal.Signals) -> None:
    output.stage("stop", f"{received.name}: answers in flight get {GRACE_S:.0f} s, again: none")
