"""Task files from the field's rows, and demonstrations for the simulator."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from nodes.backends.simulator.demonstrations import GIVES_UP, Demonstrations, load_demonstrations
from nodes.commands import tasks
from nodes.tasks import code, math, stem, swe
from nodes.tasks.loading import EXAMPLES, code_row, load_tasks, math_row, stem_row, swe_row
from nodes.tasks.talk import payload_reader

READERS = {
    kind.__name__.rpartition(".")[2]: payload_reader(kind.Payload)
    for kind in (math, code, stem, swe)
}


@pytest.mark.parametrize(
    ("row", "answer"),
    [
        ({"problem": "p", "answer": "\\frac{1}{2}"}, "\\frac{1}{2}"),
        ({"question": "p", "answer": "so 3 + 4\n#### 1,007"}, "1007"),
        ({"problem": "p", "solution": "thus \\boxed{1} or \\boxed{\\frac{1}{2}}."}, "\\frac{1}{2}"),
        ({"prompt": "p", "final_answer": 7}, "7"),
    ],
)
def test_rows_of_math(row: dict[str, Any], answer: str) -> None:
    assert math_row(row) == {"problem": "p", "answer": answer}


def test_rows_of_code() -> None:
    program = {
        "question": "p",
        "input_output": json.dumps({"inputs": ["1\n", ["2", "3"]], "outputs": ["1", ["5"]]}),
    }
    assert code_row(program)["tests"] == [
        {"input": "1\n", "output": "1"},
        {"input": "2\n3", "output": "5"},
    ]
    called = {
        "question": "p",
        "input_output": {"fn_name": "f", "inputs": [[1, "a"]], "outputs": [[2]]},
    }
    assert code_row(called) == {
        "prompt": "p",
        "function": "f",
        "tests": [{"input": '[1,"a"]', "output": "[2]"}],
    }
    asserted = {"text": "p", "test_list": ["assert f((1, 2), {3}) == {'a': (4,)}"]}
    found = code_row(asserted)
    assert (found["function"], found["tests"]) == (
        "f",
        [{"input": "[[1,2],[3]]", "output": '{"a":[4]}'}],
    )
    for line in ("assert f(1)", "assert f(1) == g(2)", "x = 1", "assert f(1) == 1 or True"):
        with pytest.raises(ValueError, match=r"assert f\(x\)|malformed"):
            code_row({"text": "p", "test_list": [line]})


@pytest.mark.parametrize(
    ("row", "letter"),
    [
        ({"choices": ["a", "b"], "answer": 1}, "B"),
        ({"choices": ["a", "b"], "answer": "B"}, "B"),
        ({"options": ["a", "b"], "answer": "a"}, "A"),
        ({"choices": {"text": ["a", "b"], "label": ["1", "2"]}, "answerKey": "2"}, "B"),
    ],
)
def test_rows_of_stem(row: dict[str, Any], letter: str) -> None:
    found = stem_row({"question": "q", **row})
    assert (found["answer"], found["choices"]) == (letter, ["a", "b"])


def test_rows_of_swe_are_those_of_swe_bench() -> None:
    row = {
        "instance_id": "a__b-1",
        "problem_statement": "p",
        "repo": "a/b",
        "base_commit": "0" * 40,
        "version": "1",
        "patch": "gold",
        "test_patch": "t",
        "FAIL_TO_PASS": '["x::y"]',
        "PASS_TO_PASS": "[]",
    }
    found = swe_row(row)
    assert found["FAIL_TO_PASS"] == ["x::y"]
    assert found["repository"] == "/testbed"
    assert "patch" not in found
    assert READERS["swe"](found).base_commit == "0" * 40


def test_a_row_that_is_no_task_names_file_and_row(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"problem": "p", "answer": "1"}\n{"problem": "p"}\n')
    with pytest.raises(ValueError, match=r"a.jsonl: row 2: .*has none of answer"):
        list(load_tasks("math", file, 9, {}))
    with pytest.raises(ValueError, match="No such file"):
        list(load_tasks("math", tmp_path / "none.jsonl", 9, {}))
    with pytest.raises(ValueError, match=r"expected .jsonl or .parquet"):
        list(load_tasks("math", tmp_path / "a.csv", 9, {}))


def test_parquet_is_read(tmp_path: Path) -> None:
    table = pa.table({"question": ["q", "r"], "answer": ["#### 1", "#### 2"]})
    parquet.write_table(table, tmp_path / "a.parquet")
    found = list(load_tasks("math", tmp_path / "a.parquet", 9, {"talk": {"turns": 2}}))
    assert [task["payload"]["answer"] for task in found] == ["1", "2"]
    assert READERS["math"](found[0]["payload"]).talk.turns == 2


@pytest.mark.parametrize("kind", ["math", "code", "stem", "swe"])
def test_every_example_is_a_task_and_has_a_demonstration(kind: str, tmp_path: Path) -> None:
    out, turns = tmp_path / "t.jsonl", tmp_path / "d.jsonl"
    words = [
        kind,
        "--examples",
        "--set",
        "talk.turns=7",
        "--demonstrations",
        str(turns),
        "--out",
        str(out),
    ]
    assert tasks(words) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(rows) >= 2
    for row in rows:
        assert set(row) == {"task_id", "kind", "payload"}
        assert READERS[kind](row["payload"]).talk.turns == 7
    assert (
        len(turns.read_text().splitlines())
        == len(rows)
        == len((EXAMPLES / f"{kind}.jsonl").read_text().splitlines())
    )


def test_a_setting_of_a_talk_leaves_the_other_defaults_of_its_kind() -> None:
    row = {"instance_id": "i", "problem_statement": "p", "FAIL_TO_PASS": ["t.py::t"]}
    talk = READERS["swe"]({**swe_row(row), "talk": {"turns": 7}}).talk
    assert (talk.turns, talk.tools, talk.wall_s) == (7, ("bash", "editor"), 1800.0)


def test_bad_settings_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tasks(["math", "--examples", "--set", "talk.turns", "--out", str(tmp_path / "t")]) == 2
    assert "expected NAME=JSON" in capsys.readouterr().err


def prompt(user: str, turns: int) -> str:
    turn = "<|im_start|>assistant\nx<|im_end|>\n<|im_start|>user\ny<|im_end|>\n"
    asked = f"<|im_start|>system\ns<|im_end|>\n<|im_start|>user\n{user}<|im_end|>\n"
    return f"{asked}{turn * turns}<|im_start|>assistant\n"


def test_a_demonstration_is_said_turn_after_turn() -> None:
    rows = [{"key": "q", "turns": [{"name": "bash", "arguments": {"command": "ls"}}, "done"]}]
    known = Demonstrations(rows)
    called = '<tool_call>\n{"name": "bash", "arguments": {"command": "ls"}}\n</tool_call>'
    assert known.next_turn(prompt("q", 0), is_right=True) == called
    assert known.next_turn(prompt("q\n\nA. one\nB. two", 0), is_right=True) == called
    assert [known.next_turn(prompt("q", n), is_right=True) for n in (1, 2)] == ["done", "done"]
    assert known.next_turn(prompt("q", 1), is_right=False) == GIVES_UP
    assert known.next_turn(prompt("r", 0), is_right=True) is None
    assert known.next_turn("no conversation", is_right=True) is None


def test_the_examples_are_known_without_an_option(tmp_path: Path) -> None:
    row = json.loads((EXAMPLES / "math.jsonl").read_text().splitlines()[0])
    assert load_demonstrations().next_turn(prompt(row["problem"], 0), is_right=True)
    (tmp_path / "d").write_text('{"key": "mine", "turns": ["yes"]}\n')
    assert (
        load_demonstrations(str(tmp_path / "d")).next_turn(prompt("mine", 0), is_right=True)
        == "yes"
    )
