"""Messages as the dictionaries that chat templates take.

Job: write them. Does not know: which template, or tokens.
Invariants: a call that could not be read stays in the text as it was written, so that a template
that only knows good calls can still render it.
"""

from collections.abc import Sequence
from typing import Any

from . import hermes
from .records import BadCall, Message, ToolCall, ToolSpec

Form = dict[str, Any]


def message_forms(messages: Sequence[Message]) -> list[Form]:
    """Return a dictionary for each message."""
    return [_form(message, place) for place, message in enumerate(messages)]


def tool_forms(tools: Sequence[ToolSpec]) -> list[Form] | None:
    """Return a dictionary for each tool; None for no tools, as templates ask for it."""
    return [tool.schema() for tool in tools] or None


def _form(message: Message, place: int) -> Form:
    form: Form = {"role": message.role, "content": message.text}
    if message.role == "tool":
        form["tool_call_id"] = message.call_id or f"call-{place}"
        if message.name:
            form["name"] = message.name
    if message.thinking:
        form["reasoning_content"] = message.thinking
    calls = [call for call in message.calls if isinstance(call, ToolCall)]
    if calls:
        form["tool_calls"] = [_call_form(call, n) for n, call in enumerate(calls)]
    unread = [call for call in message.calls if isinstance(call, BadCall)]
    for call in unread:
        form["content"] += f"{hermes.CALL}{call.text}{hermes.CALLED}"
    return form


def _call_form(call: ToolCall, number: int) -> Form:
    function = {"name": call.name, "arguments": call.arguments}
    return {"type": "function", "id": call.id or f"call-{number}", "function": function}
