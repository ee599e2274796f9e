"""Chat messages as clients send them, brought to the one form that chat templates expect."""

from __future__ import annotations

from ktops_engine.server.errors import bad_request

ROLES = ("system", "developer", "user", "assistant", "tool")
REASONING_FIELDS = ("reasoning_content", "reasoning")

Message = dict[str, object]


def normalise_messages(messages: object) -> list[Message]:
    """Checked messages with string content, `developer` as `system`. Raises ApiError 400.

    Content is None only where an assistant called tools and said nothing. Reasoning comes as
    `reasoning_content`, whichever of its two names it had.
    """
    if messages is None:
        raise bad_request("messages is required.", param="messages", code="missing_value")
    if not isinstance(messages, list) or not messages:
        raise bad_request("messages must be a list of at least one message.", param="messages")
    return [_normalise(message, f"messages[{at}]") for at, message in enumerate(messages)]


def _normalise(message: object, param: str) -> Message:
    if not isinstance(message, dict):
        raise bad_request(f"{param} must be an object with role and content.", param=param)
    role = message.get("role")
    if role not in ROLES:
        raise bad_request(f"{param}.role must be one of {', '.join(ROLES)}.", param=f"{param}.role")
    if "content" not in message and role != "assistant":
        raise bad_request(
            f"{param}.content is required.", param=f"{param}.content", code="missing_value"
        )
    content = _text(message.get("content"), f"{param}.content")
    result: Message = {"role": "system" if role == "developer" else role, "content": content or ""}
    if role == "assistant":
        _add_assistant_fields(result, message, param)
    if role == "tool" and (call_id := message.get("tool_call_id")) is not None:
        result["tool_call_id"] = _string(call_id, f"{param}.tool_call_id")
    if (name := message.get("name")) is not None:
        result["name"] = _string(name, f"{param}.name")
    return result


def _add_assistant_fields(result: Message, message: Message, param: str) -> None:
    for field in REASONING_FIELDS:
        if reasoning := message.get(field):
            result["reasoning_content"] = _string(reasoning, f"{param}.{field}")
            break
    calls = message.get("tool_calls")
    if not calls:
        return
    if not isinstance(calls, list):
        raise bad_request(f"{param}.tool_calls must be a list.", param=f"{param}.tool_calls")
    result["tool_calls"] = [
        _tool_call(call, f"{param}.tool_calls[{at}]") for at, call in enumerate(calls)
    ]
    result["content"] = result["content"] or None


def _tool_call(call: object, param: str) -> Message:
    function = call.get("function") if isinstance(call, dict) else None
    if (
        not isinstance(call, dict)
        or not isinstance(function, dict)
        or not isinstance(function.get("name"), str)
        or not isinstance(function.get("arguments"), str)
    ):
        raise bad_request(
            f"{param} must have function.name and function.arguments, both strings.", param=param
        )
    return {"type": "function", **call}


def _text(content: object, param: str) -> str:
    """The text of string, null or text-part content; parts are joined by newlines, as in vLLM."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise bad_request(f"{param} must be a string or a list of text parts.", param=param)
    return "\n".join(_part(part, f"{param}[{at}]") for at, part in enumerate(content))


def _part(part: object, param: str) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, dict) else None
    if isinstance(part, dict) and kind in ("text", "refusal"):
        return _string(part.get(str(kind)), f"{param}.{kind}")
    if isinstance(kind, str):
        raise bad_request(
            f"{param} is of type {kind[:40]!r}, but this model reads only text.", param=param
        )
    raise bad_request(f"{param} must be a text part.", param=param)


def _string(value: object, param: str) -> str:
    if not isinstance(value, str):
        raise bad_request(f"{param} must be a string.", param=param)
    return value
