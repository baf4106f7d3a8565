r"""Turns of a conversation in which a calculator is offered, written as Hermes models write them.

    <tool_call>
    {"name": "calculator", "arguments": {"expression": "12 + 30"}}
    </tool_call>

Job: find the next step of a question like "Start with 12. Add 30. Multiply by 3. What is the
result?", write the call for it, and after the last one the answer.
Does not know: the tool, tasks or expected answers; it reads the conversation's text.
Invariants: a step is called until the conversation holds its result, or `MOST_ERRORS` times in
vain. A turn that is not to be right is a call that cannot be read, a wrong step or a wrong answer.
"""

import json
import random
import re

OPERATORS = {"Add": "+", "Subtract": "-", "Multiply by": "*"}
MOST_ERRORS = 3
_OFFER = re.compile(r"<\|im_start\|>system\n.*?<tools>.*?\"calculator\".*?</tools>", re.DOTALL)
_QUESTION = re.compile(r"<\|im_start\|>user\nStart with (-?\d+)\.(.*?)What is the result\?")
_STEP = re.compile(r"(Add|Subtract|Multiply by) (-?\d+)\.")
_RESPONSE = re.compile(r"<tool_response>\n(.*?)\n</tool_response>", re.DOTALL)


def next_turn(prompt: str, chance: random.Random, *, is_right: bool) -> str | None:
    """Return the assistant's next turn, or None if the prompt offers no calculator."""
    question = _QUESTION.search(prompt)
    if question is None or not _OFFER.search(prompt[: question.start()]):
        return None
    steps = _STEP.findall(question[2])
    responses = _RESPONSE.findall(prompt, question.end())
    results = [each for each in responses if re.fullmatch(r"-?\d+", each)]
    value = int(results[-1]) if results else int(question[1])
    if len(results) < len(steps) and len(responses) - len(results) < MOST_ERRORS:
        operation, number = steps[len(results)]
        return _call(f"{value} {OPERATORS[operation]} {number}", chance, is_right=is_right)
    return f"<answer>{value if is_right else value + chance.choice((-10, -1, 1, 10))}</answer>"


def _call(expression: str, chance: random.Random, *, is_right: bool) -> str:
    slip = "" if is_right else chance.choice(("unreadable", "wrong", "", ""))
    if slip == "wrong":
        expression += "0"
    call = json.dumps({"name": "calculator", "arguments": {"expression": expression}})
    if slip == "unreadable":
        call = call[:-2]
    return f"<tool_call>\n{call}\n</tool_call>"
