"""A calculator for models: integer arithmetic without evaluating code.

Job: parse an expression with `ast` and work it out.
Does not know: who asks.
Invariants: bounded in time and memory whatever the expression: its length, its depth and every
intermediate result have limits. Only integers, parentheses and + - * // % are understood.
"""

import ast
import operator
import re
from collections.abc import Callable

from .tools import Tool, ToolError

MOST_CHARACTERS = 200
MOST_DEPTH = 50
MOST = 10**30  # the largest magnitude of any intermediate result
UNDERSTOOD = "only integers, parentheses and + - * // % are understood"
_PLAIN = re.compile(r"[0-9()+\-*/% ]*")
_BINARY: dict[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_UNARY: dict[type[ast.unaryop], Callable[[int], int]] = {
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
}


def evaluate(expression: str) -> int:
    """Return the value of an expression.

    Raises: ToolError, in words for the model, if it is not one or goes beyond a limit.
    """
    if len(expression) > MOST_CHARACTERS:
        raise ToolError(f"the expression is longer than {MOST_CHARACTERS} characters")
    if not _PLAIN.fullmatch(expression):
        raise ToolError(UNDERSTOOD)
    try:
        tree = ast.parse(expression.strip(), mode="eval")
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        raise ToolError("this is not an arithmetic expression") from None
    return _value(tree.body, MOST_DEPTH)


def _value(node: ast.expr, depth: int) -> int:
    if depth == 0:
        raise ToolError("the expression is nested too deeply")
    match node:
        case ast.Constant(value=int() as value) if not isinstance(value, bool):
            found = value
        case ast.UnaryOp(op=op, operand=operand) if type(op) in _UNARY:
            found = _UNARY[type(op)](_value(operand, depth - 1))
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
            found = _binary(op, _value(left, depth - 1), _value(right, depth - 1))
        case _:
            raise ToolError(UNDERSTOOD)
    if abs(found) > MOST:
        raise ToolError("a number is too large")
    return found


def _binary(op: ast.operator, left: int, right: int) -> int:
    try:
        return _BINARY[type(op)](left, right)
    except ZeroDivisionError:
        raise ToolError("division by zero") from None


async def _call(expression: str) -> str:
    return str(evaluate(expression))


CALCULATOR = Tool(
    "calculator",
    "Evaluate an arithmetic expression of integers.",
    {
        "type": "object",
        "properties": {"expression": {"type": "string"}},
        "required": ["expression"],
        "additionalProperties": False,
    },
    _call,
)
