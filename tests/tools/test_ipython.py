"""The tool `ipython` over real kernels."""

import asyncio
import sys
from collections.abc import Callable

import pytest

from engine.errors import BoundaryError
from nodes.tools.ipython import LOST, IPython, IPythonSettings

from ..plain_sandbox import PlainSandbox
from .boxes import PROVIDERS, started

pytestmark = pytest.mark.timeout(300)
LONG_S = 60.0
SETTINGS = IPythonSettings(timeout_s=LONG_S, python=(sys.executable,))
INSIDE = IPythonSettings(timeout_s=LONG_S)


Answers = Callable[..., list[str]]


@pytest.fixture(params=PROVIDERS)
def answers(request: pytest.FixtureRequest) -> Answers:
    """Return a function that returns what each piece of code is answered with, by one kernel."""

    async def ask(codes: tuple[str, ...], timeout_s: float) -> list[str]:
        async with started(request.param) as box:
            settings = SETTINGS if request.param == "plain" else INSIDE
            ipython = IPython(box, settings)
            try:
                return [await ipython.call(code, timeout_s) for code in codes]
            finally:
                await ipython.close()
                assert sorted(path.name for path in box.shared_dir.iterdir()) == []

    return lambda *codes, timeout_s=LONG_S: asyncio.run(ask(codes, timeout_s))


LOW = "import os, time; code = os.system('echo low'); time.sleep(0.5); code"  # a thread reads it


def test_variables_persist_and_values_are_shown(answers: Answers) -> None:
    told = answers("x = 2", "print('a'); x + 1", "!echo hi", LOW)
    assert told[:3] == ["[no output]", "a\n3", "hi"]
    assert told[3] in {"low\n0", "0\nlow"}


def test_an_error_is_its_traceback_without_colours(answers: Answers) -> None:
    told, after = answers("x = 5; 1 / 0", "x")
    assert told.endswith("ZeroDivisionError: division by zero")
    assert "\x1b" not in told
    assert after == "5"


def test_displays_are_text_and_images_are_noted(answers: Answers) -> None:
    code = (
        "from IPython.display import HTML, SVG, Markdown, display\n"
        "display(Markdown('*m*'))\ndisplay(SVG('<svg></svg>'))\n"
        "display({'image/png': 'AAAA', 'text/plain': 'a plot'}, raw=True)"
    )
    (told,) = answers(code)
    assert "[image/svg+xml, 6 characters encoded]" in told
    assert told.endswith("a plot\n[image/png, 4 characters encoded]")


def test_code_over_its_time_is_interrupted_and_the_session_is_kept(answers: Answers) -> None:
    told = answers("x = 5", "import time; time.sleep(600)", "x", timeout_s=2.0)
    assert "KeyboardInterrupt" in told[1]
    assert "interrupted after" in told[1]
    assert told[2] == "5"


def test_code_right_behind_an_error_is_run(answers: Answers) -> None:
    told = answers(*["1/0", "6 * 7"] * 20)
    assert told[1::2] == ["42"] * 20


def test_code_that_ignores_interrupts_is_killed_with_its_session(answers: Answers) -> None:
    code = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\nwhile True: pass"
    told, after = answers(code, "1 + 1", timeout_s=2.0)
    assert told.startswith("[killed after")
    assert told.endswith(f"{LOST}]")
    assert after == "2"


@pytest.mark.parametrize(
    "end", ["import os; os._exit(3)", "import os; os.kill(os.getpid(), 9)", "exit()"]
)
def test_the_death_of_the_kernel_is_reported_and_a_new_one_started(
    answers: Answers, end: str
) -> None:
    told, after = answers(f"x = 5\n{end}", "'x' in dir()")
    assert told == f"[the session ended; {LOST}]"
    assert after == "False"


def test_asking_for_input_is_an_error(answers: Answers) -> None:
    (told,) = answers("input()")
    assert "StdinNotImplementedError" in told


def test_much_output_is_cut_in_the_middle(answers: Answers) -> None:
    told, after = answers("print('first' + 'a' * 10**7 + 'last')", "1")
    assert len(told) < 20_000
    assert told.startswith("firsta")
    assert told.endswith("alast")
    assert "bytes left out" in told
    assert after == "1"


def test_messages_that_imitate_the_kernels_end_nothing_and_break_nothing(answers: Answers) -> None:
    code = (
        "from ipykernel.kernelapp import IPKernelApp\n"
        "stream = IPKernelApp.instance().iopub_socket\n"
        "stream.send_multipart([b'junk'])\n"
        "stream.send_multipart([b'x', b'<IDS|MSG>', b'0', b'[]', b'{}', b'{}', b'1'])\n"
        "print('told')"
    )
    told, after = answers(code, "1 + 1")
    assert "told" in told
    assert after == "2"


def test_a_sandbox_without_a_kernel_is_a_failure_of_the_infrastructure() -> None:
    async def ask() -> None:
        box = PlainSandbox()
        ipython = IPython(box, IPythonSettings(python=(sys.executable, "-S", "-I")))
        try:
            with pytest.raises(BoundaryError, match="No module named") as raised:
                await ipython.call("1")
            assert raised.value.boundary == "sandbox"
        finally:
            await ipython.close()
            await box.stop()

    asyncio.run(ask())
