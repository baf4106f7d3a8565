r"""Tool calls as text, in the format of Hermes and Qwen.

    <tool_call>\n{"name": "calculator", "arguments": {"expression": "12 + 30"}}\n</tool_call>
    <tool_response>\n42\n</tool_response>

Job: write what the system message says about tools and how a tool answers; read thinking, text and
calls out of a completion's text.
Does not know: tokens.
Invariants: reading never raises: what is no call becomes a BadCall that says why. Calls come in the
order in which they were written. Marks inside thinking are no calls.
"""

import json
import re
from collections.abc import Sequence
from itertools import groupby
from typing import Any

from .records import BadCall, Call, Message, ToolCall, ToolSpec

THINK, THOUGHT = "<think>", "</think>"
CALL, CALLED = "<tool_call>", "</tool_call>"
MOST_CALLS = 64  # of one completion; the rest are one bad call
_CALLS = re.compile(rf"{CALL}(.*?)(?:{CALLED}|\Z)", re.DOTALL)
_TOOLS = """# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
{signatures}
</tools>

For each function call, return a json object with function name and arguments within \
<tool_call></tool_call> XML tags:
<tool_call>
{{"name": <function-name>, "arguments": <args-json-object>}}
</tool_call>"""


def system_text(text: str, tools: Sequence[ToolSpec]) -> str:
    """Return a system message that ends with its tools, as Qwen's template writes it."""
    if not tools:
        return text
    signatures = "\n".join(json.dumps(tool.schema(), ensure_ascii=False) for tool in tools)
    section = _TOOLS.format(signatures=signatures)
    return f"{text}\n\n{section}" if text else section


def response_text(text: str) -> str:
    """Return a tool's answer between its marks; part of a user's message."""
    return f"<tool_response>\n{text}\n</tool_response>"


def with_tools(messages: Sequence[Message], tools: Sequence[ToolSpec]) -> list[Message]:
    """Return messages whose first is a system message that ends with the tools."""
    if not tools:
        return list(messages)
    has_system = bool(messages) and messages[0].role == "system"
    text = system_text(messages[0].text if has_system else "", tools)
    return [Message("system", text), *messages[has_system:]]


def fold_tools(messages: Sequence[Message]) -> list[Message]:
    """Return messages in which answers of tools that follow each other are one user's message."""
    folded: list[Message] = []
    for role, group in groupby(messages, key=lambda message: message.role):
        if role == "tool":
            folded.append(Message("user", "\n".join(response_text(each.text) for each in group)))
        else:
            folded.extend(group)
    return folded


def assistant_parts(message: Message) -> list[str]:
    """Return an assistant's message as texts and marks; only for prompts of a new segment."""
    parts = [THINK, message.thinking, THOUGHT] if message.thinking else []
    parts.append(message.text)
    for call in message.calls:
        parts += ["\n" if message.text or call is not message.calls[0] else ""]
        parts += [CALL, _written(call), CALLED]
    return [part for part in parts if part]


def _written(call: Call) -> str:
    if isinstance(call, BadCall):
        return call.text
    written = {"name": call.name, "arguments": call.arguments}
    return f"\n{json.dumps(written, ensure_ascii=False)}\n"


def read_completion(text: str) -> Message:
    """Return what a completion's text says; thinking ends at the first end mark."""
    before, mark, after = text.partition(THOUGHT)
    if mark:
        thinking, spoken = before.partition(THINK)[2] or before, after
    elif THINK in text:
        spoken, _, thinking = text.partition(THINK)
    else:
        thinking, spoken = "", text
    found = list(_CALLS.finditer(spoken))
    calls = tuple(_read_call(match) for match in found[:MOST_CALLS])
    if len(found) > MOST_CALLS:
        calls += (BadCall("", f"more than {MOST_CALLS} tool calls in one turn"),)
    said = _CALLS.sub("", spoken)
    return Message("assistant", said.strip("\n"), thinking, calls)


def _read_call(match: re.Match[str]) -> Call:
    inner = match[1]
    if not match[0].endswith(CALLED):
        return BadCall(inner, f"the tool call has no {CALLED}")
    try:
        written: Any = json.loads(inner)
    except (ValueError, RecursionError) as wrong:
        return BadCall(inner, f"the tool call is not JSON: {wrong}")
    if not isinstance(written, dict):
        return BadCall(inner, "the tool call is not a JSON object")
    name, arguments = written.get("name"), written.get("arguments", {})
    if not isinstance(name, str):
        return BadCall(inner, 'the tool call has no "name"')
    if not isinstance(arguments, dict):
        return BadCall(inner, 'the tool call\'s "arguments" are not a JSON object')
    return ToolCall(name, arguments)
