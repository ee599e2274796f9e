"""The HTTP server: OpenAI's routes over one engine.

How `ktops serve` uses it:

    listener = open_listener(host, port)          # first of all: KtopsError("port-in-use")
    handle = ModelHandle()                        # "loading" until the engine is there
    app = create_app(handle, ServerConfig(model_id="demo", api_key=None, max_new_tokens=None))
    run_server(
        app, handle, listener,                    # blocks, in the main thread, until a signal
        load=lambda: LLM.load(config, on_progress=show),   # runs in a thread; /health says 503
        grace_s=30.0,
        on_listening=lambda address: ...,         # the port answers: address.url, .host, .port
        on_ready=lambda address: ...,             # the model answers too
    )

`run_server` returns after SIGTERM or SIGINT, when the running answers are finished (or the grace
time is over); what `load` raises, it raises. A `load` that takes long should call
`handle.check_stop()` from time to time (in `on_progress`): it raises KtopsError("interrupted")
once a signal came, so that loading ends at once.
"""

from ktops_engine.server.app import create_app
from ktops_engine.server.config import ServerConfig
from ktops_engine.server.handle import Engine, ModelHandle
from ktops_engine.server.listener import Address, open_listener
from ktops_engine.server.run import run_server

__all__ = [
    "Address",
    "Engine",
    "ModelHandle",
    "ServerConfig",
    "create_app",
    "open_listener",
    "run_server",
]
