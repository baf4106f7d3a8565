"""Task kind `swe`: a repository, an issue, and the tests that say whether it is solved.

    payload: {"instance_id": "...", "problem_statement": "...", "archive": "/data/x.tar.gz",
              "repository": "", "base_commit": "", "test_patch": "",
              "FAIL_TO_PASS": ["tests/test_a.py::test_b"], "PASS_TO_PASS": [], "talk": {...}}

`archive` is a file of the worker's host that is unpacked; a small repository may stand in the task
itself instead, as `files`: {path: text}. Without either the image of the sandbox has the repository
at `repository`, as images of SWE-bench have it at /testbed.

Job: prompt, conversation, patch; then the patch and the tests in a fresh sandbox.
Does not know: how a repository is handled (`swe_repository`), or sandbox providers.
Invariants: the patch is the only thing that reaches the second sandbox. Files that decide how tests
run, and the tests themselves, are not taken from it. All of FAIL_TO_PASS and PASS_TO_PASS have to
pass. A patch that is absent or does not apply scores 0; a test patch that does not apply is a
failure. A success counts only if a control run, in which the tests cannot pass, reports no success.
docs/tasks.md says what could still be forged.
"""

from dataclasses import dataclass, field
from typing import Annotated

from engine.errors import BoundaryError
from engine.typed import AtLeast, Length, Text

from ..sandboxes.contract import Limits, Sandbox, Spec
from . import Context, Output
from .swe_repository import DECIDES, UNPACKED, Repository, changed_files
from .talk import Talk, ToolName, hold, opening, payload_reader, toolset

SYSTEM = (
    "You repair software. The repository is in {path}. Find the cause of the issue, change the "
    "code, and check what you did. Your changes to files are the answer; do not commit them. "
    "Hidden tests decide; changes to tests and to the configuration of pytest do not count."
)
PATCH_BYTES = 8 * 1024**2
Long = Annotated[str, Length(0, 10_000_000)]


@dataclass(frozen=True, slots=True)
class LongTalk(Talk):
    """A talk about a repository: with tools, and longer than others unless it says otherwise."""

    turns: Annotated[int, AtLeast(1), "of the model, at most"] = 50
    context_tokens: Annotated[int, AtLeast(2), "prompt and completion together"] = 32_768
    wall_s: Annotated[float, AtLeast(1), "seconds for the conversation"] = 1800.0
    tools: Annotated[tuple[ToolName, ...], "what the model may call"] = ("bash", "editor")


@dataclass(frozen=True, slots=True)
class Payload:
    """What a task of this kind carries; names as in SWE-bench where it has them."""

    instance_id: Annotated[str, Length(1, 200), "the instance"]
    problem_statement: Annotated[str, Length(1, 200_000), "what the user says"]
    FAIL_TO_PASS: Annotated[tuple[str, ...], Length(1, 100_000), "tests that have to pass now"]
    PASS_TO_PASS: Annotated[tuple[str, ...], "tests that have to pass still"] = ()
    archive: Annotated[Text, "a tar.gz on the worker's host, unpacked without its first folder"] = (
        ""
    )
    files: Annotated[dict[str, str], "a small repository: path to text"] = field(
        default_factory=dict
    )
    repository: Annotated[Text, "where the repository is inside; empty: where it is unpacked"] = ""
    base_commit: Annotated[Text, "to check out; empty: as it is"] = ""
    test_patch: Annotated[Long, "the tests, applied after the model's patch"] = ""
    test_cpu_s: Annotated[float, AtLeast(1), "processor time of all tests"] = 300.0
    memory_bytes: Annotated[int, AtLeast(1), "of each process"] = 4 * 1024**3
    talk: Annotated[LongTalk, "how the conversation is held"] = field(default_factory=LongTalk)


read_payload = payload_reader(Payload)


async def init(context: Context) -> Output:
    """Write the messages that open the conversation."""
    payload = read_payload(context.task.payload)
    return opening(SYSTEM.format(path=payload.repository or UNPACKED), payload.problem_statement)


async def _started(context: Context, payload: Payload) -> Sandbox:
    limits = Limits(
        memory_bytes=payload.memory_bytes, cpu_s=payload.test_cpu_s, output_bytes=PATCH_BYTES
    )
    return await context.sandbox(Spec(image=payload.talk.image, limits=limits))


async def run(context: Context) -> Output:
    """Let the model change the repository, and take the patch."""
    payload = read_payload(context.task.payload)
    sandbox = await _started(context, payload)
    try:
        repository = Repository(sandbox, payload.repository)
        await repository.prepare(payload.archive, payload.base_commit, payload.files)
        async with toolset(payload.talk, sandbox, repository.path) as made:
            result = await hold(context, payload.talk, made.tools)
        patch = await repository.patch()
    finally:
        await sandbox.stop()
    return result.output(patch=patch, template=payload.talk.template)


async def eval(context: Context) -> Output:  # noqa: A001 - the stage's name
    """Apply the patch in a fresh sandbox and run the tests: 1 if all that should pass do.

    Before that is believed, the tests run once more, made to fail at their end: whoever reports
    them as passed then is not believed.
    """
    payload = read_payload(context.task.payload)
    patch = context.data["run"]["patch"]
    if not patch.strip():
        return _scored(payload, "no patch", {})
    found = await _tested(context, payload, patch)
    scored = _scored(payload, found.why, found.outcomes)
    if scored.reward == 1.0 and (liars := await _liars(context, payload, patch)):
        why = f"made to fail, and reported as passed: {', '.join(liars)}"
        return _scored(payload, why[:1000], {})
    return scored


@dataclass(frozen=True, slots=True)
class _Tested:
    """Outcomes by test id, or why there are none; and the tests that were made to fail."""

    why: str
    outcomes: dict[str, str]
    made_to_fail: frozenset[str] = frozenset()

    @property
    def liars(self) -> list[str]:
        """The tests that passed although they were made to fail."""
        return sorted(each for each in self.made_to_fail if self.outcomes.get(each) == "passed")


async def _liars(context: Context, payload: Payload, patch: str) -> list[str]:
    """Return the required tests that pass with the patch whatever happens, and not without it."""
    found = (await _tested(context, payload, patch, is_control=True)).liars
    if not found:
        return []
    always = (await _tested(context, payload, "", is_control=True)).liars
    return [each for each in found if each not in always]


async def _tested(
    context: Context, payload: Payload, patch: str, *, is_control: bool = False
) -> _Tested:
    """Run the tests in a fresh sandbox with the patch; in a control run, those made to fail."""
    ids = (*payload.FAIL_TO_PASS, *payload.PASS_TO_PASS)
    tests = sorted({each.partition("::")[0] for each in ids})
    sandbox = await _started(context, payload)
    try:
        repository = Repository(sandbox, payload.repository)
        await repository.prepare(payload.archive, payload.base_commit, payload.files)
        keep_out = (*DECIDES, *tests, *changed_files(payload.test_patch))
        if patch and not await repository.apply(patch, keep_out):
            return _Tested("the patch does not apply", {})
        if payload.test_patch and not await repository.apply(payload.test_patch):
            why = f"{payload.instance_id}: test_patch does not apply"
            raise BoundaryError("evaluator", why, retry=False)
        changed = await repository.make_fail(ids) if is_control else set()
        outcomes = await repository.outcomes(tests, payload.test_cpu_s)
    finally:
        await sandbox.stop()
    why = "" if outcomes else "the tests reported nothing"
    return _Tested(why, outcomes, frozenset(changed))


def _scored(payload: Payload, why: str, outcomes: dict[str, str]) -> Output:
    def passed(ids: tuple[str, ...]) -> float:
        return sum(outcomes.get(each) == "passed" for each in ids) / len(ids) if ids else 1.0

    rewards = {
        "fail_to_pass": passed(payload.FAIL_TO_PASS),
        "pass_to_pass": passed(payload.PASS_TO_PASS),
    }
    is_resolved = min(rewards.values()) == 1.0
    asked = (*payload.FAIL_TO_PASS, *payload.PASS_TO_PASS)
    failed = [each for each in asked if outcomes.get(each) != "passed"]
    data = {"resolved": is_resolved, "why": why, "failed": failed[:100]}
    return Output(data=data, reward=float(is_resolved), rewards=rewards)
