"""Sums in a few steps: what the policy is asked, and how a pupil would go about it.

    problem = draw(random.Random(7))
    problem.question  # "Start with 4. Add 7. Multiply by 3. What is the result?"
    tasks("train", seed=7)  # of rollmq's task kind `calculator`, without an end

Job: draw problems, make tasks of them, and write the transcripts that the warm-up learns.
Does not know: models, or rollouts.
Invariants: the same random numbers give the same problems. A slip is what the policy has to
unlearn: with one in it, a transcript's answer is wrong unless by luck.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

from engine import Task
from nodes.agent import ChatmlTemplate, Message, ToolCall
from nodes.backends.tiny_conversations import SIGNS, SPEC, Part, written
from nodes.tasks.calculator import SYSTEM

Slip = Literal["", "guess", "stop early", "wrong operation"]
SLIPS: tuple[Slip, ...] = get_args(Slip)[1:]
MOST_STEPS = 2
LARGEST, LARGEST_FACTOR = 9, 5
MOST_GUESSED = 99
TURNS = 4  # a sum of two steps takes three
TURN_TOKENS = 64  # a call takes 36
CONTEXT_TOKENS = 1024  # of topology.yaml's server
WALL_S = 500.0  # a busy machine is slow, and that is not the policy's doing


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a sum: "Add 7."."""

    verb: str
    number: int

    def text(self) -> str:
        """Return the words of the question."""
        return f"{self.verb} {self.number}."

    def expression(self, value: int) -> str:
        """Return what the calculator is asked, at this value."""
        return f"{value} {SIGNS[self.verb]} {self.number}"

    def apply(self, value: int) -> int:
        """Return the value after this step."""
        if self.verb == "Multiply by":
            return value * self.number
        return value + self.number if self.verb == "Add" else value - self.number


@dataclass(frozen=True, slots=True)
class Sum:
    """A number to start with, and steps."""

    start: int
    steps: tuple[Step, ...]

    @property
    def question(self) -> str:
        """What the user says."""
        said = [f"Start with {self.start}.", *(step.text() for step in self.steps)]
        return " ".join([*said, "What is the result?"])

    @property
    def result(self) -> int:
        """The right answer."""
        value = self.start
        for step in self.steps:
            value = step.apply(value)
        return value


def draw(chance: random.Random) -> Sum:
    """Return a sum of one or two steps, of small numbers."""
    steps = tuple(_step(chance) for _ in range(chance.randint(1, MOST_STEPS)))
    return Sum(chance.randint(2, LARGEST), steps)


def _step(chance: random.Random) -> Step:
    verb = chance.choice(tuple(SIGNS))
    return Step(verb, chance.randint(2, LARGEST_FACTOR if verb == "Multiply by" else LARGEST))


def tasks(name: str, seed: int) -> Iterator[Task]:
    """Yield tasks without an end; `name` begins their ids."""
    chance = random.Random(seed)  # noqa: S311 - has to be repeatable
    number = 0
    while True:
        problem = draw(chance)
        payload = {
            "question": problem.question,
            "result": problem.result,
            "turns": TURNS,
            "max_tokens": TURN_TOKENS,
            "context_tokens": CONTEXT_TOKENS,
            "wall_s": WALL_S,
        }
        yield Task(f"{name}-{number}", "calculator", payload)
        number += 1


def transcript(
    problem: Sum, slip: Slip, chance: random.Random, template: ChatmlTemplate
) -> list[Part]:
    """Return (token_ids int32 [n], whether the model writes them), in order."""
    asked = [Message("system", SYSTEM), Message("user", problem.question)]
    prompt = template.opening(asked, [SPEC])
    parts: list[Part] = [(prompt, False)]
    value = problem.start
    for words, step in _followed(problem, slip, chance):
        call = ToolCall(SPEC.name, {"expression": step.expression(value)})
        said = written(Message("assistant", "", words, (call,)))
        value = step.apply(value)
        answer = [Message("tool", str(value), name=SPEC.name)]
        parts += [(said, True), (template.following(prompt, said, answer, [SPEC]), False)]
    if slip == "guess":
        value = chance.randint(2, MOST_GUESSED)
    return [*parts, (written(Message("assistant", f"<answer>{value}</answer>")), True)]


def _followed(problem: Sum, slip: Slip, chance: random.Random) -> list[tuple[str, Step]]:
    """Return what is said at each step, and what is then done."""
    followed = [(step.text(), step) for step in problem.steps]
    match slip:
        case "guess":
            return []
        case "stop early":
            return followed[:-1]
        case "wrong operation":
            at = chance.randrange(len(followed))
            said, step = followed[at]
            others = [verb for verb in SIGNS if verb != step.verb]
            followed[at] = (said, Step(chance.choice(others), step.number))
    return followed
