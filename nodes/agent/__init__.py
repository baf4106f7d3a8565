"""The agent loop: conversations with the policy as token IDs, turns, tools and limits.

Job: what a task kind's run handler needs to talk to the model. Does not know: tasks, or the router.
"""

from .chatml import ChatmlTemplate
from .conversation import Conversation
from .loop import Limits, Result, converse
from .records import BadCall, Call, Message, ToolCall, ToolSpec
from .template import Template
from .tools import Tool, ToolError

__all__ = [
    "BadCall",
    "Call",
    "ChatmlTemplate",
    "Conversation",
    "Limits",
    "Message",
    "Result",
    "Template",
    "Tool",
    "ToolCall",
    "ToolError",
    "ToolSpec",
    "converse",
]
