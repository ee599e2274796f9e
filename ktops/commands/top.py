"""`ktops top`: what a running server does, now."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from ktops.commandline import output_of
from ktops.monitor.readings import Readings
from ktops.monitor.server_metrics import MetricsClient
from ktops.monitor.view import bare, choose_view, lines
from ktops.server_client import EXAMPLE_URL
from ktops.settings import Settings, load_settings
from ktops_engine.errors import EXIT_USAGE, KtopsError
from ktops_engine.text import text

EXAMPLES = (
    ("ktops top", "the server of the settings"),
    (f"ktops top --url {EXAMPLE_URL}", "a server elsewhere"),
    ("ktops top --once", "one look, for a report"),
    ("ktops top --json --interval 10", "a line of JSON every 10 seconds"),
    ("ktops top --once -q", "tokens a second, as a number"),
)

MIN_INTERVAL_S = 0.1
ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1"}


def top(
    ctx: typer.Context,
    url: Annotated[
        str | None,
        typer.Option(help="The server; default: the settings' host and port.", show_default=False),
    ] = None,
    interval: Annotated[
        float, typer.Option(min=MIN_INTERVAL_S, help="Seconds between two looks.")
    ] = 2.0,
    once: Annotated[
        bool, typer.Option("--once", help="Watch for one interval, print, and leave.")
    ] = False,
    api_key: Annotated[
        str | None, typer.Option(help="Key that the server asks for.", show_default=False)
    ] = None,
) -> None:
    """Watch a running server: speed, queue, latency, memory.

    A display that redraws itself on a terminal, a line per interval elsewhere. Ctrl-C leaves.
    """
    output = output_of(ctx)
    settings = load_settings(api_key=api_key)
    address = server_url(settings) if url is None else url
    with MetricsClient(address, settings.api_key) as client:
        readings = Readings(client.sample())
        if once:
            time.sleep(interval)
            reading = readings.add(client.sample())
            output.result(
                {"url": client.url, **reading.document()},
                human=lines(reading, client.url, output),
                quiet=[bare(reading)],
            )
            return
        with choose_view(output, client.url) as view:
            while True:
                time.sleep(interval)
                view.show(readings.add(client.sample()))


def server_url(settings: Settings) -> str:
    """Where the server of these settings is reached from this machine.

    Raises KtopsError "usage" for port 0, which stands for whichever is free.
    """
    if not settings.port:
        raise KtopsError(
            "usage",
            text("the settings leave the port open, so the server's is not known"),
            f"ktops top --url {EXAMPLE_URL}",
            exit_status=EXIT_USAGE,
        )
    host = ANY_ADDRESS.get(settings.host, settings.host)
    return f"http://[{host}]:{settings.port}" if ":" in host else f"http://{host}:{settings.port}"
