r"""A judge of mathematical answers: math-verify in a process of its own.

    {"gold": "\\frac{1}{2}", "answer": "... \\boxed{0.5}"}  ->  {"gold": true}  {"equal": true}

`python -m nodes.tasks.math_judge` is that process; `Judge` starts it and asks.

Job: say whether an answer equals the right one, whatever the answer makes sympy do.
Does not know: tasks or rewards.
Invariants: the process is used again until it dies. An answer gets CPU_S seconds of processor time
and MEMORY_BYTES of memory: beyond them it is judged `too hard`, by the system and not by a clock,
so a machine that is busy changes no verdict. A judge that is not heard within WALL_S, that dies for
another reason, or a right answer that cannot be read is a BoundaryError and no verdict.
"""

import asyncio
import contextlib
import logging
import resource
import signal
import sys
from typing import Any, Literal

import orjson

from engine.errors import BoundaryError
from engine.process import child_environment, die_with_parent

CPU_S = 5.0
MEMORY_BYTES = 2 * 1024**3  # of address space
WALL_S = 120.0
ANSWER_CHARACTERS = 20_000  # the end of the text; answers stand there
TOO_HARD = {-signal.SIGPROF, -signal.SIGSEGV, -signal.SIGABRT}  # how it ends beyond its limits
Verdict = Literal["equal", "different", "too hard"]


class Judge:
    """One judge for all that share an event loop; close it when done."""

    def __init__(self, cpu_s: float = CPU_S, memory_bytes: int = MEMORY_BYTES) -> None:
        self._arguments = (str(cpu_s), str(memory_bytes))
        self._process: asyncio.subprocess.Process | None = None
        self._turn = asyncio.Lock()

    async def verdict(self, gold: str, answer: str) -> Verdict:
        """Compare an answer, a text that ends with one, to the right one.

        Raises: BoundaryError("evaluator").
        """
        async with self._turn:  # whoever is before us has WALL_S at most; the stage has a deadline
            try:
                async with asyncio.timeout(WALL_S):
                    return await self._ask(gold, answer)
            except TimeoutError:
                pass
        raise BoundaryError("evaluator", f"the judge was silent for {WALL_S:g} s")

    async def _ask(self, gold: str, answer: str) -> Verdict:
        process = await self._running()
        assert process.stdin is not None
        asked = {"gold": gold, "answer": answer[-ANSWER_CHARACTERS:]}
        has_answered = False
        try:
            process.stdin.write(orjson.dumps(asked) + b"\n")
            gold_told = await self._line(process)
            told = await self._line(process) if gold_told.get("gold") else {}
            has_answered = True
        finally:
            if not has_answered:
                await self.close()
        if not told:
            why = f"the right answer {gold[:200]!r} cannot be read: {gold_told}"
            raise BoundaryError("evaluator", why, retry=False)
        if "ended" not in told:
            return "equal" if told["equal"] else "different"
        if told["ended"] not in TOO_HARD:
            raise BoundaryError("evaluator", f"the judge ended with {told['ended']}")
        return "too hard"

    async def _line(self, process: asyncio.subprocess.Process) -> dict[str, Any]:
        assert process.stdout is not None
        line = await process.stdout.readline()
        if line:
            told: dict[str, Any] = orjson.loads(line)
            return told
        self._process = None
        return {"ended": await process.wait()}

    async def _running(self) -> asyncio.subprocess.Process:
        if self._process is None or self._process.returncode is not None:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "nodes.tasks.math_judge", *self._arguments),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                env=child_environment(),
            )
        return self._process

    async def close(self) -> None:
        """End the process; idempotent."""
        process, self._process = self._process, None
        if process is not None and process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()


def main() -> int:
    """Judge line after line until the input ends; return the exit status."""
    die_with_parent()
    cpu_s, memory_bytes = float(sys.argv[1]), int(sys.argv[2])
    logging.disable(logging.CRITICAL)
    from math_verify import parse, verify  # noqa: PLC0415 - only the child pays for it

    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for line in sys.stdin.buffer:
        asked = orjson.loads(line)
        gold = _read(parse, asked["gold"])
        _tell({"gold": bool(gold)})
        if not gold:
            continue
        signal.setitimer(signal.ITIMER_PROF, cpu_s)
        equal = False
        with contextlib.suppress(MemoryError, RecursionError):
            answer = parse(asked["answer"], parsing_timeout=None)
            equal = bool(answer) and bool(verify(gold, answer, timeout_seconds=None))
        signal.setitimer(signal.ITIMER_PROF, 0)
        _tell({"equal": equal})
    return 0


def _read(parse: Any, gold: str) -> Any:
    return parse(f"\\boxed{{{gold.strip().strip('$')}}}", parsing_timeout=None) or parse(
        gold, parsing_timeout=None
    )


def _tell(verdict: dict[str, Any]) -> None:
    sys.stdout.buffer.write(orjson.dumps(verdict) + b"\n")
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    sys.exit(main())
