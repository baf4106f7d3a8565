"""Tools `think` and `submit`: they need nothing but what the model says.

Job: give thoughts a place, and take an answer explicitly.
Does not know: sandboxes. Invariants: the last submission counts.
"""

from ..agent import Tool


async def _think(thought: str) -> str:
    del thought  # it is in the conversation, which is all that it is for
    return "noted"


THINK = Tool(
    "think",
    "Write down a thought. Nothing is looked up and nothing changes.",
    {
        "type": "object",
        "properties": {"thought": {"type": "string"}},
        "required": ["thought"],
        "additionalProperties": False,
    },
    _think,
)


class Submit:
    """The tool `submit`, and the answer that it was given; None if it was not called."""

    def __init__(self) -> None:
        self.answer: str | None = None
        self.tool = Tool(
            "submit",
            "Give the final answer. It can be given again; the last one counts.",
            {
                "type": "object",
                "properties": {"answer": {"type": "string"}},
                "required": ["answer"],
                "additionalProperties": False,
            },
            self.call,
        )

    async def call(self, answer: str) -> str:
        """Take an answer."""
        self.answer = answer
        return "taken; say nothing more if this is your answer"
