"""Tools: what the model may call, and what it hears when it does.

Job: find the tool, check the arguments against its schema, call it, and answer.
Does not know: tokens, templates or the model.
Invariants: whatever the model wrote, it is answered: a call that cannot be read, an unknown tool,
bad arguments and a ToolError are all told to it. A failure of the infrastructure, and a bug in a
tool, is a BoundaryError and nothing that the model is told.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from jsonschema import Draft202012Validator, SchemaError, ValidationError
from jsonschema.exceptions import best_match

from engine.errors import BoundaryError, RollmqError

from .records import BadCall, Call, Message, ToolCall, ToolSpec

ANSWER_CHARACTERS = 20_000  # of one answer; the rest is left out, and the model is told so


class ToolError(RollmqError):
    """A tool cannot do what it was asked, and the model may try something else."""


@dataclass(frozen=True, slots=True)
class Tool:
    """An async callable that takes arguments by name and returns text.

    `parameters` is a JSON schema of an object. `call` raises ToolError for what the model can
    correct, and BoundaryError where what it stands on has failed.
    """

    name: str
    description: str
    parameters: dict[str, Any]
    call: Callable[..., Awaitable[str]]


@dataclass(frozen=True, slots=True)
class Answer:
    """What the model is told, and `error`: empty if the tool answered."""

    name: str
    text: str
    error: str = ""

    def message(self, call: Call) -> Message:
        """Return the answer to a call as a message."""
        call_id = call.id if isinstance(call, ToolCall) else ""
        return Message("tool", self.text, name=self.name, call_id=call_id)


class Toolbox:
    """Tools by name, with their schemas checked and compiled.

    Raises: ValueError if two tools share a name, or if a schema is none.
    """

    def __init__(self, tools: Sequence[Tool]) -> None:
        self._tools = {tool.name: tool for tool in tools}
        if len(self._tools) != len(tools):
            raise ValueError(f"tools share a name: {', '.join(tool.name for tool in tools)}")
        self._checks = {tool.name: _validator(tool) for tool in tools}
        self.specs = tuple(ToolSpec(each.name, each.description, each.parameters) for each in tools)

    async def answer(self, call: Call) -> Answer:
        """Carry out a call; return what the model is told.

        Raises: BoundaryError, of the tool itself or because it raised something else.
        """
        if isinstance(call, BadCall):
            return _error("", call.why)
        tool = self._tools.get(call.name)
        if tool is None:
            known = ", ".join(self._tools) or "none"
            return _error(call.name[:64], f"no tool {call.name[:64]!r}; there are: {known}")
        wrong = best_match(self._checks[tool.name].iter_errors(call.arguments))
        if wrong is not None:
            return _error(tool.name, f"arguments{_place(wrong)}: {wrong.message[:500]}")
        try:
            return Answer(tool.name, _bounded(await tool.call(**call.arguments)))
        except ToolError as refused:
            return _error(tool.name, str(refused))
        except BoundaryError:
            raise
        except Exception as bug:
            why = f"{tool.name}: {type(bug).__name__}: {bug}"
            raise BoundaryError("tool", why) from bug


def _validator(tool: Tool) -> Any:
    try:
        Draft202012Validator.check_schema(tool.parameters)
    except SchemaError as wrong:
        raise ValueError(
            f"tool {tool.name}: its parameters are no schema: {wrong.message}"
        ) from None
    return Draft202012Validator(tool.parameters)


def _place(wrong: ValidationError) -> str:
    return "".join(f".{part}" for part in wrong.absolute_path)


def _error(name: str, why: str) -> Answer:
    return Answer(name, f"error: {_bounded(why)}", _bounded(why))


def _bounded(text: str) -> str:
    if len(text) <= ANSWER_CHARACTERS:
        return text
    return f"{text[:ANSWER_CHARACTERS]}\n[{len(text) - ANSWER_CHARACTERS} characters left out]"
