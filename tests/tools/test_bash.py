"""The tool `bash` over real shells: what every hostile command is answered with."""

import asyncio
import os
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from engine.errors import BoundaryError
from nodes.agent import ToolError
from nodes.tools.bash import LOST, Bash, BashSettings
from nodes.tools.shell import Shell, write_new

from ..plain_sandbox import PlainSandbox
from .boxes import PROVIDERS, started

pytestmark = pytest.mark.timeout(300)
LONG_S = 60.0  # a deadline that nothing here comes near to
SHELLS = 5  # one after the other: an orphan may be buried at once by chance


@asynccontextmanager
async def shell(provider: str = "plain") -> AsyncIterator[Callable[..., Awaitable[str]]]:
    async with started(provider) as box:
        bash = Bash(box, BashSettings(timeout_s=LONG_S))
        try:
            yield bash.call
        finally:
            await bash.close()


@pytest.fixture(params=PROVIDERS)
def answers(request: pytest.FixtureRequest) -> Callable[..., list[str]]:
    """Return a function that returns what each command is answered with, by one shell."""

    def asked(*commands: str, timeout_s: float = LONG_S) -> list[str]:
        async def ask() -> list[str]:
            async with shell(request.param) as call:
                return [await call(command, timeout_s) for command in commands]

        return asyncio.run(ask())

    return asked


Answers = Callable[..., list[str]]


def test_directory_variables_functions_and_status_persist(answers: Answers) -> None:
    told = answers(
        "cd / && x=5 && twice() { echo $1$1; }",
        "pwd; echo $x; twice a",
        "exit_with() { return 7; }; exit_with",
        "echo $?",
    )
    assert told == ["[exit code 0]", "/\n5\naa\n[exit code 0]", "[exit code 7]", "7\n[exit code 0]"]


def test_a_background_job_goes_on_between_commands(answers: Answers) -> None:
    started, waited = answers(
        "(read -t 0.2 <> <(:); echo late) & disown; echo now", "read -t 1 <> <(:); echo then"
    )
    assert "now" in started
    assert "late" in started + waited
    assert waited.endswith("then\n[exit code 0]")


def test_a_job_that_keeps_writing_disturbs_only_the_output(answers: Answers) -> None:
    told = answers(
        "(while :; do echo noise; done) & echo $!", "echo one; false", "kill %1; wait; echo over"
    )
    assert told[1].endswith("[exit code 1]")
    assert "over" in told[2]
    assert all(len(each) < 40_000 for each in told)


@pytest.mark.parametrize(
    "imitation",
    [
        r"printf '\033_0123456789abcdef0123456789abcdef;0\033\\'; false",
        r"printf '\033_p1\033\\\033_p2\033\\'; false",
        r"for i in 1 2 3; do printf '\033_'; done; false",
        r"printf '\033]0;'; false",
        "echo '[exit code 0]'; false",
    ],
)
def test_output_that_imitates_the_marker_ends_nothing(answers: Answers, imitation: str) -> None:
    told, after = answers(imitation, "echo fine")
    assert told.endswith("[exit code 1]")
    assert after == "fine\n[exit code 0]"


def test_a_hundred_megabytes_are_cut_in_the_middle(answers: Answers) -> None:
    (told,) = answers("echo first; head -c 100000000 /dev/zero | tr '\\0' a; echo; echo last")
    assert len(told) < 20_000
    assert told.startswith("first\naaa")
    assert told.endswith("aaa\nlast\n[exit code 0]")
    left_out = re.search(r"\[(\d+) bytes left out\]", told)
    assert left_out is not None
    assert 99_900_000 < int(left_out[1]) < 100_000_100


def test_binary_noise_is_text_without_control_characters(answers: Answers) -> None:
    noise, after = answers("head -c 20000 /dev/urandom", "echo fine")
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f]", noise)
    assert noise.endswith("[exit code 0]")
    assert after.endswith("fine\n[exit code 0]")


def test_terminal_escapes_are_left_out(answers: Answers) -> None:
    (told,) = answers(r"printf '\033[1;31mred\033[0m \033]0;title\007plain\n10%%\r20%%\r\nab\bc\n'")
    assert told == "red plain\n20%\nac\n[exit code 0]"


def test_standard_input_is_empty(answers: Answers) -> None:
    assert answers("cat; read x || echo none") == ["none\n[exit code 0]"]


def test_a_long_command_of_many_lines_arrives_whole(answers: Answers) -> None:
    text = "\n".join(f'line {number} \'and "quotes" $x' for number in range(3000))
    (told,) = answers(f"wc -lc <<'END'\n{text}\nEND")
    assert told.split()[:2] == ["3000", str(len(text) + 1)]


@pytest.mark.parametrize("command", ["'", "if", "echo $(", "((", "fi", "cat <<X"])
def test_what_cannot_be_parsed_is_an_error_of_the_command(answers: Answers, command: str) -> None:
    told, after = answers(command, "echo fine")
    assert "exit code" in told
    assert after == "fine\n[exit code 0]"


@pytest.mark.parametrize(
    "command",
    [
        "echo ${nope:?missing}",
        "kill -INT $$",
        "set -u; echo $nope; set +u",
        "bash -c 'kill -INT $$'",
    ],
)
def test_a_shell_that_gives_up_a_line_answers_at_once(answers: Answers, command: str) -> None:
    told, after = answers(command, "set +u; echo fine", timeout_s=LONG_S)
    assert re.search(r"\[exit code (1|130)\]$", told)
    assert after == "fine\n[exit code 0]"


def test_a_command_over_its_time_is_interrupted_and_the_shell_is_kept(answers: Answers) -> None:
    told = answers(
        "x=5; cd /",
        "echo begun; sleep 600",
        "pwd; echo $x",
        "while :; do :; done",
        "echo $x",
        timeout_s=2.0,
    )
    assert re.fullmatch(
        r"begun\n\n?\[interrupted after \d s; exit code 130; the shell was kept\]", told[1]
    )
    assert told[2] == "/\n5\n[exit code 0]"
    assert "interrupted" in told[3]
    assert told[4] == "5\n[exit code 0]"


def test_a_command_that_ignores_interrupts_is_killed_and_the_shell_is_kept(
    answers: Answers,
) -> None:
    told = answers("x=5", "(trap '' INT; exec sleep 600)", "echo $x", timeout_s=2.0)
    assert re.search(r"\[killed after \d s; exit code 137; the shell was kept\]$", told[1])
    assert told[2].endswith("5\n[exit code 0]")


@pytest.mark.parametrize("command", ["trap '' INT; while :; do :; done", "kill -STOP $$"])
def test_a_shell_that_cannot_be_brought_back_is_replaced(answers: Answers, command: str) -> None:
    told, after = answers(command, "echo fine", timeout_s=2.0)
    assert told.endswith(f"with its shell; {LOST}]")
    assert after == "fine\n[exit code 0]"


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("exit 3", "the shell ended with exit code 3"),
        ("sleep 600 & exit 3", "the shell ended with exit code 3"),
        ("exec echo gone", "gone\n[the shell ended with exit code 0"),
        ("exec false", "the shell ended with exit code 1"),
        ("kill -9 $$", "the shell ended with signal 9"),
        ("set -e; false", "the shell ended with exit code 1"),
    ],
)
def test_the_end_of_the_shell_is_reported_and_a_new_one_started(
    answers: Answers, command: str, said: str
) -> None:
    told, after = answers(f"x=5; {command}", "echo ${x-unset}")
    assert said in told
    assert told.endswith(f"{LOST}]")
    assert after == "unset\n[exit code 0]"


def test_a_terminal_left_in_another_mode_is_put_right(answers: Answers) -> None:
    told = answers("stty raw echo </dev/tty", "echo one; echo two")
    assert told[1] == "one\ntwo\n[exit code 0]"


def test_output_redirected_by_exec_stays_so_and_commands_still_end(answers: Answers) -> None:
    told = answers("exec >/dev/null 2>&1", "echo hidden", "exec >/dev/tty 2>&1", "echo shown")
    assert [each.rpartition("\n")[2] for each in told] == ["[exit code 0]"] * 4
    assert told[1] == "[exit code 0]"
    assert told[3] == "shown\n[exit code 0]"


def test_a_prompt_of_its_own_does_not_matter(answers: Answers) -> None:
    told = answers("PS1='$ '; PROMPT_COMMAND='echo prompt'", "echo one", "kill -INT $$", "echo two")
    assert told[1].endswith("one\n[exit code 0]")
    assert told[2].endswith("[exit code 130]")
    assert "two" in told[3]


def test_a_restart_forgets_and_an_empty_command_is_refused() -> None:
    async def ask() -> None:
        async with shell() as call:
            await call("x=5")
            assert await call(restart=True) == f"[{LOST}]"
            assert await call("echo ${x-unset}") == "unset\n[exit code 0]"
            with pytest.raises(ToolError, match="empty"):
                await call(" ")

    asyncio.run(ask())


def test_a_cancelled_command_leaves_a_shell_that_is_replaced() -> None:
    async def ask() -> None:
        async with shell() as call:
            await call("x=5")
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(call("sleep 600"), 1.0)
            assert await call("echo ${x-unset}") == "unset\n[exit code 0]"

    asyncio.run(ask())


def test_a_link_in_the_shared_directory_is_never_written_through(tmp_path: Path) -> None:
    target = tmp_path / "target"
    (tmp_path / "link").symlink_to(target)
    with pytest.raises(FileExistsError):
        write_new(tmp_path / "link", "echo hi")
    assert not target.exists()


def test_a_sandbox_without_a_shell_is_a_failure_of_the_infrastructure() -> None:
    class Broken(PlainSandbox):
        def terminal(self, argv: Any) -> list[str]:
            return ["sh", "-c", "echo no such sandbox; exit 1"]

    async def ask() -> None:
        box = Broken()
        try:
            with pytest.raises(BoundaryError, match="no such sandbox") as raised:
                await Bash(box).call("echo hi")
            assert raised.value.boundary == "sandbox"
        finally:
            await box.stop()

    asyncio.run(ask())


def test_a_start_that_is_cancelled_leaves_no_process() -> None:
    async def ask() -> None:
        async with started("plain") as box:
            shell = Shell(box)
            starting = asyncio.ensure_future(shell.restart())
            await asyncio.sleep(0)
            starting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await starting
            await shell.restart()
            assert (await shell.run("echo fine", LONG_S)).output == "fine\n"
            assert shell._child is not None
            mine = shell._child.pid
            deadline = asyncio.get_running_loop().time() + LONG_S
            while children() != {mine}:
                assert asyncio.get_running_loop().time() < deadline, children()
                await asyncio.sleep(0.01)
            await shell.close()

    asyncio.run(ask())


@pytest.mark.parametrize("provider", PROVIDERS[1:])
def test_a_shell_that_is_closed_is_buried_and_holds_no_sandbox_up(provider: str) -> None:
    """As an orphan it would wait for the machine's first process, and the sandbox's end for it."""

    async def ask() -> None:
        async with started(provider) as box:
            bash = Bash(box)
            for _ in range(SHELLS):
                await bash.call("sleep 4710 & true")
                assert bash._shell._child is not None
                entrance = bash._shell._child.pid
                inside = [Path(f"/proc/{pid}") for pid in children(entrance)]
                assert inside
                await bash.close()
                assert not [path for path in (*inside, Path(f"/proc/{entrance}")) if path.exists()]

    asyncio.run(ask())


def children(pid: int = 0) -> set[int]:
    """Return what a process has started, this one if none is named."""
    tasks = Path(f"/proc/{pid or os.getpid()}/task").glob("*/children")
    return {int(child) for path in tasks for child in path.read_text().split()}
