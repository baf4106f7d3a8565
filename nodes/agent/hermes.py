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
from typing import Any

from .records import BadCall, Call, Message, ToolCall, ToolSpec

THINK, THOUGHT = "<think>", "</think>"
CALL, CALLED = "<tool_call>", "</tool_call>"
MOST_CALLS = 64  # of one completion; the rest are one bad call
_CALLS = re.compile(f"{CALL}(.*?)(?:{CALLED}|$)", re.DOTALL)
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


def call_text(call: Call) -> str:
    """Return a call between its marks; only for prompts of a new segment."""
    if isinstance(call, BadCall):
        inner = call.text
    else:
        written = {"name": call.name, "arguments": call.arguments}
        inner = f"\n{json.dumps(written, ensure_ascii=False)}\n"
    return f"{CALL}{inner}{CALLED}"


def assistant_text(message: Message) -> str:
    """Return an assistant's message as one text; only for prompts of a new segment."""
    thinking = f"{THINK}{message.thinking}{THOUGHT}" if message.thinking else ""
    return "\n".join(filter(None, [thinking + message.text, *map(call_text, message.calls)]))


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
