"""Answers to some kinds of reasoning-gym questions, found from the question's text alone.

Job: give the simulator something that is right when it tries, so that rewards mean something.
Does not know: datasets, seeds or expected answers; a question is text.
Invariants: `solve` returns the answer in the form that the question asks for, or None if the
question is of no kind known here. A pattern matches the whole question's kind, not its wording
elsewhere. The legs are those of reasoning-gym 0.1.25, leg_counting.
"""

import ast
import math
import re
from collections.abc import Callable
from fractions import Fraction

Solver = Callable[[re.Match[str]], str]

LEGS = {
    0: "snake,sea slug,jellyfish,flatworm,leech",
    2: "chicken,bird,human,duck",
    4: "dog,cat,cow,horse,lion,elephant,giraffe,tiger,deer,sheep",
    5: "starfish",
    6: "insect,ant,butterfly,beetle,bee,wasp,grasshopper,cricket,cockroach,praying mantis,firefly",
    8: "spider,scorpion",
    10: "crab,lobster,shrimp",
    14: "woodlouse",
}
LEGS_OF = {animal: legs for legs, animals in LEGS.items() for animal in animals.split(",")}
DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
OPERATIONS: dict[type, Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: lambda left, right: left + right,
    ast.Sub: lambda left, right: left - right,
    ast.Mult: lambda left, right: left * right,
    ast.Div: lambda left, right: left / right,
}


def solve(question: str) -> str | None:
    """Return the answer to a question, or None if it is of no kind known."""
    for pattern, solver in SOLVERS:
        match = pattern.search(question)
        if match is not None:
            try:
                return solver(match)
            except (ValueError, KeyError, ZeroDivisionError, SyntaxError):
                return None
    return None


def evaluate(expression: str) -> Fraction:
    """Return the value of an arithmetic expression with + - * / and parentheses.

    Raises: ValueError or SyntaxError if it is anything else; ZeroDivisionError.
    """
    return _value(ast.parse(expression.strip(), mode="eval").body)


def _value(node: ast.expr) -> Fraction:
    match node:
        case ast.Constant(value=int() | float() as number):
            return Fraction(str(number))
        case ast.UnaryOp(op=ast.USub()):
            return -_value(node.operand)
        case ast.BinOp() if type(node.op) in OPERATIONS:
            return OPERATIONS[type(node.op)](_value(node.left), _value(node.right))
    raise ValueError(f"not arithmetic: {ast.dump(node)}")


def _arithmetic(match: re.Match[str]) -> str:
    value = evaluate(match[1])
    return str(value.numerator) if value.denominator == 1 else str(float(value))


def _integers(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"-?\d+", text)]


def _factors(match: re.Match[str]) -> str:
    number, divisor, found = int(match[1]), 2, []
    while divisor * divisor <= number:
        while number % divisor == 0:
            found.append(divisor)
            number //= divisor
        divisor += 1
    return " × ".join(map(str, found + ([number] if number > 1 else [])))  # noqa: RUF001


def _sorted_numbers(match: re.Match[str]) -> str:
    numbers = [number.strip() for number in match[2].split(",")]
    return str(sorted(numbers, key=float, reverse=match[1] == "descending"))


def _sorted_words(match: re.Match[str]) -> str:
    words = [word.strip() for word in match[2].split(",")]
    return ", ".join(sorted(words, reverse=match[1] == "descending"))


def _reversed_words(match: re.Match[str]) -> str:
    return ", ".join(word.strip() for word in reversed(match[1].split(",")))


def _legs(match: re.Match[str]) -> str:
    total = 0
    for part in match[1].split(","):
        count, animal = part.strip().split(" ", 1)
        singular = animal if animal in LEGS_OF else animal.removesuffix("s")
        total += int(count) * LEGS_OF[singular]
    return str(total)


def _letters(match: re.Match[str]) -> str:
    return str(match[2].lower().count(match[1].lower()))


def _rebased(match: re.Match[str]) -> str:
    number, base, digits = int(match[2], _base(match[1])), _base(match[3]), ""
    while number:
        number, digit = divmod(number, base)
        digits = DIGITS[digit] + digits
    return digits or "0"


def _base(name: str) -> int:
    named = {"binary": 2, "hexadecimal": 16}
    return named.get(name) or int(name.removeprefix("base-"))


def _primes(match: re.Match[str]) -> str:
    start, end = int(match[1]), int(match[2])
    is_prime = bytearray([1]) * (end + 1)
    is_prime[:2] = bytes(2)
    for number in range(2, math.isqrt(end) + 1):
        if is_prime[number]:
            is_prime[number * number :: number] = bytes(len(is_prime[number * number :: number]))
    return str(sum(is_prime[start:]))


def _equation(match: re.Match[str]) -> str:
    name, left, right = match[1], match[2], match[3]
    at = [
        evaluate(re.sub(rf"\b{name}\b", f"({x})", left))
        - evaluate(re.sub(rf"\b{name}\b", f"({x})", right))
        for x in (0, 1)
    ]
    root = -at[0] / (at[1] - at[0])
    return str(root)


_ARITHMETIC = r"([-+*/(). \d]*\d[-+*/(). \d]*?)"
SOLVERS: tuple[tuple[re.Pattern[str], Solver], ...] = tuple(
    (re.compile(pattern, re.DOTALL), solver)
    for pattern, solver in (
        (rf"following arithmetic problem: {_ARITHMETIC} ?=", _arithmetic),
        (rf"following multiplication: {_ARITHMETIC}\. Give", _arithmetic),
        (rf"^Calculate {_ARITHMETIC}\.?$", _arithmetic),
        (
            r"Greatest Common Divisor \(GCD\) of these numbers: ([\d, ]+)\.",
            lambda match: str(math.gcd(*_integers(match[1]))),
        ),
        (
            r"Least Common Multiple \(LCM\) of these numbers: ([\d, ]+)",
            lambda match: str(math.lcm(*_integers(match[1]))),
        ),
        (r"prime factorization of (\d+)\.", _factors),
        (r"Sort these numbers in (ascending|descending) order: ([-\d., ]+)", _sorted_numbers),
        (r"sort these words in (ascending|descending) order .*?: ([^\n]+)", _sorted_words),
        (r"Reverse this list of words: ([^\n]+)", _reversed_words),
        (r"in total if you have ([^?]+)\?", _legs),
        (r"Spell this word backward \(.*?\): (\S+)", lambda match: match[1][::-1]),
        (r'the letter "(.)" appear in the text: "(.*)"\?', _letters),
        (r"convert the (\S+) number (\w+) to (\S+)", _rebased),
        (
            r"binary representation of the number (\d+)\?",
            lambda match: str(int(match[1]).bit_count()),
        ),
        (r"prime numbers there are between (\d+) and (\d+) \(inclusive\)", _primes),
        (r"(?:Solve for|value of) (\w)\b[^:]*: ([^=\n]+) = ([^=\n]+)", _equation),
    )
)
