r"""Tasks of kinds `math`, `code`, `stem` and `swe` from the field's usual local files.

    {"problem": "...", "answer": "42"}                                      a row of kind math
    {"question": "...", "choices": ["a", "b"], "answer": 1}                 a row of kind stem

Job: read JSON lines or Parquet, and turn each row into a payload; docs/tasks.md lists the names.
Does not know: where files come from; nothing is downloaded.
Invariants: a row that cannot be a task is a ValueError that names the file, the row and what is
missing, and never a task that is worth 0. Rows stay in order.
"""

import ast
import re
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import orjson

Row = dict[str, Any]
EXAMPLES = Path(__file__).parent.parent / "data" / "examples"
_FINAL = re.compile(r"####\s*(.+?)\s*$")
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def load_tasks(kind: str, path: Path, count: int, settings: Row) -> Iterator[Row]:
    """Yield at most `count` tasks of a file; `settings` are merged into each payload.

    Raises: ValueError if the file cannot be read, or a row is no task.
    """
    for number, row in enumerate(islice(read_rows(path), count), 1):
        try:
            payload = _ROWS[kind](row)
        except (KeyError, ValueError, TypeError, SyntaxError) as wrong:
            why = f"{path}: row {number}: {type(wrong).__name__}: {wrong}"
            raise ValueError(why) from None
        name = row.get("task_id") or row.get("id") or row.get("instance_id")
        task = {
            "task_id": f"{kind}-{str(name)[:120]}" if name is not None else f"{path.stem}-{number}",
            "kind": kind,
            "payload": merged(payload, settings),
        }
        turns = row.get("demonstration")
        yield {**task, "demonstration": turns} if turns else task


def uses_sandbox(task: Row) -> bool:
    """Whether a task cannot be run, or not be judged, without a sandbox."""
    tools = task["payload"].get("talk", {}).get("tools", ())
    return task["kind"] in {"code", "swe"} or bool({"bash", "ipython", "editor"} & set(tools))


def merged(payload: Row, settings: Row) -> Row:
    """Return a payload with settings; objects are merged, everything else is replaced."""
    found = dict(payload)
    for name, value in settings.items():
        before = found.get(name)
        both = isinstance(before, dict) and isinstance(value, dict)
        found[name] = merged(before, value) if both else value  # type: ignore[arg-type]
    return found


def read_rows(path: Path) -> Iterator[Row]:
    """Yield the rows of a .jsonl or .parquet file.

    Raises: ValueError if it is neither, or cannot be read.
    """
    if path.suffix not in {".jsonl", ".json", ".parquet"}:
        raise ValueError(f"{path}: expected .jsonl or .parquet")
    try:
        if path.suffix == ".parquet":
            from pyarrow import parquet  # noqa: PLC0415 - slow to import, and rarely needed

            for batch in parquet.ParquetFile(path).iter_batches(256):
                yield from batch.to_pylist()
            return
        with path.open("rb") as lines:
            yield from (orjson.loads(line) for line in lines if line.strip())
    except (OSError, ValueError) as wrong:
        raise ValueError(f"{path}: {wrong}") from None


def math_row(row: Row) -> Row:
    """Return a payload; the answer may stand behind `####`, or in the last box of a solution.

    Raises: ValueError, KeyError.
    """
    answer = str(_first(row, "answer", "final_answer", "expected_answer", "solution"))
    final = _FINAL.search(answer)
    answer = final[1].replace(",", "") if final else last_box(answer) or answer
    return {"problem": _first(row, "problem", "question", "prompt"), "answer": answer, **_own(row)}


def last_box(text: str) -> str:
    r"""Return what stands in the last \boxed{...}, or nothing."""
    start = text.rfind("\\boxed{")
    depth = 0
    for place in range(start, len(text) if start >= 0 else 0):
        depth += (text[place] == "{") - (text[place] == "}")
        if text[place] == "}" and not depth:
            return text[start + len("\\boxed{") : place]
    return ""


def code_row(row: Row) -> Row:
    """Return a payload; tests as pairs, as parallel lists, or as `assert f(x) == y`.

    Raises: ValueError, KeyError, SyntaxError.
    """
    payload = {"prompt": _first(row, "prompt", "question", "text", "problem"), **_own(row)}
    function = row.get("function") or row.get("entry_point") or ""
    if row.get("tests"):
        tests = [dict(test) for test in row["tests"]]
    elif row.get("test_list"):
        function, tests = _asserted(row["test_list"])
    else:
        both = _parsed(_first(row, "input_output"))
        function = both.get("fn_name") or function
        pairs = zip(both["inputs"], both["outputs"], strict=True)
        tests = [_pair(one, other, is_json=bool(function)) for one, other in pairs]
    return {**payload, "function": function, "tests": tests}


def _pair(one: Any, other: Any, *, is_json: bool) -> Row:
    if is_json:
        return {"input": orjson.dumps(one).decode(), "output": orjson.dumps(other).decode()}
    lines = [
        "\n".join(map(str, each)) if isinstance(each, list) else str(each) for each in (one, other)
    ]
    return {"input": lines[0], "output": lines[1]}


def _asserted(lines: list[str]) -> tuple[str, list[Row]]:
    names, tests = set(), []
    for line in lines:
        match ast.parse(line.strip(), mode="exec").body:
            case [
                ast.Assert(
                    test=ast.Compare(
                        left=ast.Call(func=ast.Name(id=name), args=args, keywords=[]),
                        ops=[ast.Eq()],
                        comparators=[right],
                    )
                )
            ]:
                names.add(name)
                given = [_plain(ast.literal_eval(each)) for each in args]
                tests.append(_pair(given, _plain(ast.literal_eval(right)), is_json=True))
            case _:
                raise ValueError(f"not of the form `assert f(x) == y`: {line[:100]}")
    if len(names) != 1:
        raise ValueError(f"expected tests of one function, got {len(names)}")
    return names.pop(), tests


def _plain(value: Any) -> Any:
    """Return a literal as JSON knows it, the way the driver in the sandbox writes results."""
    if isinstance(value, set | frozenset):
        return sorted((_plain(each) for each in value), key=repr)
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, dict):
        return {str(key): _plain(each) for key, each in value.items()}
    return value


def stem_row(row: Row) -> Row:
    """Return a payload; the answer of a choice is its letter, its label, its number or its text.

    Raises: ValueError, KeyError.
    """
    choices = row.get("choices") or row.get("options") or []
    labels = list(_LETTERS)
    if isinstance(choices, dict):
        labels, choices = list(choices["label"]), list(choices["text"])
    answer = _first(row, "answer", "answerKey", "answer_index")
    if choices:
        if isinstance(answer, int):
            answer = _LETTERS[answer]
        elif answer in labels[: len(choices)]:
            answer = _LETTERS[labels.index(answer)]
        else:
            answer = _LETTERS[choices.index(answer)]
    payload = {"question": _first(row, "question", "prompt"), "answer": str(answer), **_own(row)}
    return {**payload, "choices": choices} if choices else payload


def swe_row(row: Row) -> Row:
    """Return a payload; lists of tests may be JSON in a string, as SWE-bench has them.

    Raises: ValueError, KeyError.
    """
    payload = {name: row[name] for name in ("instance_id", "problem_statement")}
    for name in ("FAIL_TO_PASS", "PASS_TO_PASS"):
        payload[name] = _parsed(row.get(name) or [])
    for name in ("base_commit", "test_patch", "archive", "repository", "files"):
        if row.get(name):
            payload[name] = row[name]
    if not any(payload.get(name) for name in ("archive", "repository", "files")):
        payload["repository"] = "/testbed"
    return {**payload, **_own(row)}


def _first(row: Row, *names: str) -> Any:
    for name in names:
        if row.get(name) is not None and row[name] != "":
            return row[name]
    raise ValueError(f"has none of {', '.join(names)}")


def _parsed(value: Any) -> Any:
    return orjson.loads(value) if isinstance(value, str) else value


def _own(row: Row) -> Row:
    """Return what rollmq's own rows say beside the field's names."""
    names = ("talk", "partial", "time_limit_s", "memory_bytes", "tolerance", "also", "test_cpu_s")
    return {name: row[name] for name in names if row.get(name) is not None}


_ROWS: dict[str, Callable[[Row], Row]] = {
    "math": math_row,
    "code": code_row,
    "stem": stem_row,
    "swe": swe_row,
}
