"""What this server cannot do yet is refused by name: a wish is never silently dropped."""

from __future__ import annotations

from ktops_engine.server.errors import ApiError, bad_request
from ktops_engine.server.openai_types import ChatRequest, CompletionRequest, GenerationRequest

# Other servers' names for answers that follow a grammar.
GUIDED_FIELDS = (
    "guided_json",
    "guided_regex",
    "guided_choice",
    "guided_grammar",
    "structured_outputs",
    "grammar",
)


def refuse_unsupported_chat(body: ChatRequest) -> None:
    """Raises ApiError 400 for tools the model is to call, grammars and audio."""
    if body.tools and body.tool_choice != "none":
        raise _refusal(
            "tools", "This server cannot call tools yet. Send tool_choice 'none' or no tools."
        )
    if not body.tools and body.tool_choice not in (None, "none", "auto"):
        raise bad_request("tool_choice needs tools.", param="tool_choice")
    extra = body.model_extra or {}
    if extra.get("functions") and extra.get("function_call") != "none":
        raise _refusal("functions", "This server cannot call functions yet.")
    modalities = extra.get("modalities")
    if isinstance(modalities, list) and any(item != "text" for item in modalities):
        raise _refusal("modalities", "This server answers with text only.")
    if body.top_logprobs is not None and not body.logprobs:
        raise bad_request("top_logprobs needs logprobs: true.", param="top_logprobs")
    _refuse_common(body)


def refuse_unsupported_completion(body: CompletionRequest) -> None:
    """Raises ApiError 400 for echo, suffix, best_of and grammars."""
    if body.echo:
        raise _refusal("echo", "This server cannot echo the prompt.")
    if body.suffix:
        raise _refusal("suffix", "This server cannot complete in front of a suffix.")
    if body.best_of is not None and body.best_of != (body.n or 1):
        raise _refusal("best_of", "This server returns every choice it makes: use n.")
    _refuse_common(body)


def _refuse_common(body: GenerationRequest) -> None:
    kind = (body.response_format or {"type": "text"}).get("type")
    if kind in ("json_object", "json_schema"):
        raise _refusal(
            "response_format",
            f"This server cannot force an answer into {kind} yet. Ask for JSON in the prompt.",
        )
    if kind != "text":
        raise bad_request(
            "response_format.type must be 'text', 'json_object' or 'json_schema'.",
            param="response_format.type",
        )
    for field in GUIDED_FIELDS:
        if (body.model_extra or {}).get(field) is not None:
            raise _refusal(field, f"This server cannot follow {field} yet.")
    if body.stream_options is not None and not body.stream:
        raise bad_request("stream_options needs stream: true.", param="stream_options")


def _refusal(param: str, message: str) -> ApiError:
    return bad_request(message, param=param, code="unsupported_parameter")
