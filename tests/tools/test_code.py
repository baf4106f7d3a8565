"""The task kind `code`: hidden tests in a real sandbox, and solutions that try to cheat."""

import json
from typing import Any

import pytest

from nodes.tasks import Output, code

from ..agent_kit import call
from .kinds import play

pytestmark = pytest.mark.timeout(300)
SUM = [{"input": f"{a} {b}\n", "output": f"{a + b}\n"} for a, b in ((1, 2), (10, -3), (700, 9))]
DOUBLE = [{"input": json.dumps([[n, n]]), "output": json.dumps([2 * n, 2 * n])} for n in (1, 5)]
RIGHT = "a, b = map(int, input().split())\nprint(a + b)"


def scored(solution: str, **payload: Any) -> Output:
    payload = {"prompt": "Add two numbers.", "tests": SUM, **payload}
    return play(code, payload, f"So:\n```python\n{solution}\n```")[1]


def test_a_right_program_passes_and_a_wrong_one_does_not() -> None:
    assert scored(RIGHT).reward == 1.0
    wrong = scored("a, b = map(int, input().split())\nprint(a - b)")
    assert (wrong.reward, wrong.data["verdicts"]) == (0.0, ["wrong output"])


def test_partial_credit_is_the_share_of_passed_tests() -> None:
    half = "a, b = map(int, input().split())\nprint(a + b if a < 100 else 0)"
    found = scored(half, partial=True)
    assert found.reward == pytest.approx(2 / 3)
    assert found.data["verdicts"] == ["passed", "passed", "wrong output"]
    assert scored(half).reward == 0.0


def test_a_function_is_called_and_its_value_counts_not_what_it_prints() -> None:
    right = "def double(xs):\n    print('noise')\n    return tuple(2 * x for x in xs)"
    assert scored(right, tests=DOUBLE, function="double").reward == 1.0
    method = "class Solution:\n    def double(self, xs):\n        return [2 * x for x in xs]"
    assert scored(method, tests=DOUBLE, function="double").reward == 1.0
    printed = "def double(xs):\n    print([2 * x for x in xs])"
    assert scored(printed, tests=DOUBLE, function="double").reward == 0.0


CHEATS = [
    "import os\nprint('passed')\nos._exit(0)",
    "import sys\nsys.exit(0)",
    "import os\nos.system('cat /work/.driver.py; ls -laR /work /shared')",
    """
class Equal:
    def __eq__(self, other): return True
    def __repr__(self): return '3'
def double(xs): return Equal()
""",
    "import os\ndef double(xs):\n    os.write(3, b'true'); os._exit(0)",
    """
import sys
def double(xs):
    for frame in sys._current_frames().values():
        while frame:
            frame.f_globals['json'] = None
            frame = frame.f_back
""",
    "import os\nopen('/work/.driver.py', 'w').write('print(1)')\nos.fork()\nprint(1)",
]


@pytest.mark.parametrize("cheat", CHEATS)
@pytest.mark.parametrize("style", ["program", "function"])
def test_no_solution_passes_by_anything_but_the_right_output(cheat: str, style: str) -> None:
    settings: dict[str, Any] = {} if style == "program" else {"tests": DOUBLE, "function": "double"}
    found = scored(cheat, partial=True, **settings)
    assert found.reward == 0.0
    assert "passed" not in found.data["verdicts"]


@pytest.mark.parametrize(
    ("solution", "said"),
    [
        ("while True: pass", {"exit code -24", "exit code -9"}),
        ("import time; time.sleep(100)", {"timed out"}),
        ("x = bytearray(3 << 30)", {"exit code 1"}),
        ("while True: print('a' * 10**6)", {"exit code -24", "exit code -9", "timed out"}),
        ("this is no Python", {"exit code 1"}),
    ],
)
def test_greed_and_slowness_score_nothing(solution: str, said: set[str]) -> None:
    found = scored(solution, time_limit_s=2.0)
    assert found.reward == 0.0
    assert set(found.data["verdicts"]) <= said


def test_no_solution_at_all_scores_nothing() -> None:
    _, found = play(code, {"prompt": "Add.", "tests": SUM}, "I do not know.")
    assert (found.reward, found.data["verdicts"]) == (0.0, ["absent"])


def test_a_file_written_with_tools_is_the_solution() -> None:
    payload = {"prompt": "Add.", "tests": SUM, "talk": {"tools": ["editor", "bash"]}}
    ran, found = play(
        code,
        payload,
        call("editor", command="create", path="solution.py", new=RIGHT),
        call("bash", command="echo 4 5 | python3 solution.py"),
        "It works.",
    )
    assert found.reward == 1.0
    assert "talk" not in ran.data


def test_texts_and_values_are_compared_leniently_where_that_is_harmless() -> None:
    assert code.same_text("1 \n2\n\n", "1\n2")
    assert not code.same_text("1\n\n2", "1\n2")
    assert code.same_value('[1.0000001, {"a": 2}]', '[1.0, {"a": 2}]')
    assert not code.same_value("true", "1")
    assert not code.same_value("[1]", "[1, 2]")
    assert not code.same_value("[" * 5000, "[]")
    assert not code.same_value("1 2", "1")
