"""What a conversation is made of: messages, tool calls, and what a completion was read as.

Job: name these. Does not know: tokens, templates or who speaks.
Invariants: records are never changed; `arguments` is a JSON object.
"""

from dataclasses import dataclass
from typing import Any, Literal

Role = Literal["system", "user", "assistant", "tool"]


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that the model wrote and that could be read; `id` where its format has one."""

    name: str
    arguments: dict[str, Any]
    id: str = ""


@dataclass(frozen=True, slots=True)
class BadCall:
    """A call that the model wrote and that could not be read; `why` is for the model."""

    text: str
    why: str


Call = ToolCall | BadCall


@dataclass(frozen=True, slots=True)
class Message:
    """One message; `thinking` and `calls` are an assistant's, `name` and `call_id` a tool's."""

    role: Role
    text: str
    thinking: str = ""
    calls: tuple[Call, ...] = ()
    name: str = ""
    call_id: str = ""


@dataclass(frozen=True, slots=True)
class ToolSpec:
    """A tool as the model is told of it; `parameters` is a JSON schema."""

    name: str
    description: str
    parameters: dict[str, Any]

    def schema(self) -> dict[str, Any]:
        """Return the form in which chat templates take a tool."""
        function = {
            "name": self.name,
            "description": self.description,
            "parameters": self.parameters,
        }
        return {"type": "function", "function": function}
