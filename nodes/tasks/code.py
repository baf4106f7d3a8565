r"""Task kind `code`: a program or a function, scored by hidden tests.

    payload: {"prompt": "...", "tests": [{"input": "1 2\n", "output": "3\n"}], "function": "",
              "partial": false, "time_limit_s": 10.0, "memory_bytes": 1073741824, "talk": {...}}

With `function` empty the solution is a program from standard input to standard output. Otherwise
`input` is a JSON list of arguments and `output` the JSON of the result. `time_limit_s` is processor
time; a test that takes five times as long in all is stopped, too.

The solution is the file /work/solution.py if the model had tools and wrote it, else the last
fenced block of its last message.

Job: prompt, conversation, and the hidden tests in a fresh sandbox after it.
Does not know: sandbox providers.
Invariants: the right outputs never enter a sandbox: they are compared here, outside. So whatever
the solution prints, writes, kills or exits with, a test is passed by the right output alone. A
solution that is wrong, late, greedy or absent scores 0: the model's doing. A sandbox without Python
is not.
"""

import json
import math
import re
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import orjson

from engine.errors import BoundaryError
from engine.typed import AtLeast, Length, Text

from ..sandboxes.contract import Finished, Limits, Sandbox, SandboxFileError, Spec
from . import Context, Output
from .talk import Talk, hold, opening, own_sandbox, payload_reader, toolset

SYSTEM = (
    "You write Python 3. {how} Give the whole solution in one fenced block (```python ... ```) of "
    "your last message{file}. Hidden tests decide."
)
PROGRAM = "The program reads standard input and writes standard output."
FUNCTION = "Define the function {name}."
FILE = "/work/solution.py"
DRIVER = "/work/.driver.py"
MOST_BYTES = 1_000_000
CHECK_S = 60.0
WALL_TIMES = 5.0  # the processor time allowed: a busy machine changes no verdict
_FENCED = re.compile(r"```[ \t]*(?:python3?|py)?[ \t]*\n(.*?)```", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Test:
    """One hidden test."""

    input: Annotated[str, Length(0, 10_000_000), "standard input, or a JSON list of arguments"]
    output: Annotated[str, Length(0, 10_000_000), "standard output, or the result as JSON"]


@dataclass(frozen=True, slots=True)
class Payload:
    """What a task of this kind carries."""

    prompt: Annotated[str, Length(1, 100_000), "what the user says"]
    tests: Annotated[tuple[Test, ...], Length(1, 10_000), "hidden from the model"]
    function: Annotated[Text, "what to define; empty: a program"] = ""
    partial: Annotated[bool, "the reward is the share of passed tests"] = False
    time_limit_s: Annotated[float, AtLeast(1), "processor time of each test"] = 10.0
    memory_bytes: Annotated[int, AtLeast(1), "of each test's process"] = 1024**3
    talk: Annotated[Talk, "how the conversation is held"] = field(default_factory=Talk)


read_payload = payload_reader(Payload)


async def init(context: Context) -> Output:
    """Write the messages that open the conversation."""
    payload = read_payload(context.task.payload)
    how = FUNCTION.format(name=payload.function) if payload.function else PROGRAM
    file = f", or leave it in {FILE}" if payload.talk.needs_sandbox else ""
    return opening(SYSTEM.format(how=how, file=file), payload.prompt)


async def run(context: Context) -> Output:
    """Let the model write the solution."""
    talk = read_payload(context.task.payload).talk
    async with own_sandbox(context, talk) as sandbox, toolset(talk, sandbox) as made:
        result = await hold(context, talk, made.tools)
        said = result.text if made.submit is None else made.submit.answer or result.text
        solution = await _left_behind(sandbox) or last_block(said)
    return result.output(solution=solution, template=talk.template)


async def _left_behind(sandbox: Sandbox | None) -> str:
    if sandbox is None:
        return ""
    with suppress(SandboxFileError):
        return (await sandbox.read(FILE, MOST_BYTES)).decode("utf-8", "replace")
    return ""


def last_block(text: str) -> str:
    """Return what stands in the last fenced block, or nothing."""
    found = _FENCED.findall(text)
    return found[-1] if found else ""


async def eval(context: Context) -> Output:  # noqa: A001 - the stage's name
    """Run the hidden tests: 1 if all pass, or the share of those that do if `partial`."""
    payload = read_payload(context.task.payload)
    solution = context.data["run"]["solution"]
    verdicts = await judge(context, payload, solution) if solution.strip() else ["absent"]
    share = verdicts.count("passed") / len(payload.tests)
    reward = share if payload.partial else float(share == 1.0)
    data = {"verdicts": verdicts[:1000], "tests": len(payload.tests)}
    return Output(data=data, reward=reward, rewards={"tests": share})


async def judge(context: Context, payload: Payload, solution: str) -> list[str]:
    """Return each test's verdict, up to the first that is not `passed` unless `partial`.

    Raises: BoundaryError("sandbox") if the sandbox cannot run Python at all.
    """
    limits = Limits(
        memory_bytes=payload.memory_bytes,
        cpu_s=payload.time_limit_s,
        output_bytes=max(65_536, *(2 * len(test.output.encode()) for test in payload.tests)),
    )
    sandbox = await context.sandbox(Spec(image=payload.talk.image, limits=limits))
    try:
        await _prepare(sandbox, solution)
        verdicts: list[str] = []
        for test in payload.tests:
            verdicts.append(await _verdict(sandbox, payload, test))
            if verdicts[-1] != "passed" and not payload.partial:
                break
        return verdicts
    finally:
        await sandbox.stop()


async def _prepare(sandbox: Sandbox, solution: str) -> None:
    try:
        await sandbox.write(FILE, solution.encode("utf-8", "replace"))
        await sandbox.write(DRIVER, (Path(__file__).parent / "code_driver.py").read_bytes())
    except SandboxFileError as wrong:
        raise BoundaryError("sandbox", f"{FILE}: {wrong.strerror}") from wrong
    found = await sandbox.exec(["python3", "-c", "pass"], timeout_s=CHECK_S)
    if found.exit_code != 0:
        why = found.stderr.decode("utf-8", "replace")[-300:]
        raise BoundaryError("sandbox", f"no working python3 in the sandbox: {why}")


async def _verdict(sandbox: Sandbox, payload: Payload, test: Test) -> str:
    argv = ["python3", FILE]
    if payload.function:
        argv = ["python3", DRIVER, FILE, payload.function]
    wall_s = WALL_TIMES * payload.time_limit_s
    ran = await sandbox.exec(argv, stdin=test.input.encode(), timeout_s=wall_s)
    return verdict(ran, test.output, is_json=bool(payload.function))


def verdict(ran: Finished, wanted: str, *, is_json: bool) -> str:
    """Return `passed`, or why a test was not: `timed out`, `exit code N`, `wrong output`."""
    if ran.timed_out:
        return "timed out"
    if ran.exit_code != 0:
        return f"exit code {ran.exit_code}"
    same = same_value if is_json else same_text
    is_right = not ran.cut and same(ran.stdout.decode("utf-8", "replace"), wanted)
    return "passed" if is_right else "wrong output"


def same_text(found: str, wanted: str) -> bool:
    """Whether two outputs have the same lines, but for spaces at ends and empty last lines."""

    def lines(text: str) -> list[str]:
        return [line.rstrip() for line in text.rstrip().split("\n")]

    return lines(found) == lines(wanted)


def same_value(found: str, wanted: str) -> bool:
    """Whether two JSON texts are the same value; floats within 1e-6 of each other are."""
    try:
        return _same(orjson.loads(found), json.loads(wanted))
    except ValueError:
        return False


def _same(found: Any, wanted: Any) -> bool:
    if isinstance(found, bool) or isinstance(wanted, bool):
        return found is wanted
    if isinstance(found, int | float) and isinstance(wanted, int | float):
        return found == wanted or math.isclose(found, wanted, rel_tol=1e-6, abs_tol=1e-9)
    if isinstance(found, list) and isinstance(wanted, list):
        return len(found) == len(wanted) and all(map(_same, found, wanted))
    if isinstance(found, dict) and isinstance(wanted, dict):
        return found.keys() == wanted.keys() and all(_same(found[k], wanted[k]) for k in wanted)
    return bool(found == wanted)
