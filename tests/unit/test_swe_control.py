"""Tests that are made to fail at their end."""

import ast

import pytest

from nodes.tasks.swe_control import failing, function_of

TEXT = """from __future__ import annotations

seen = []


def test_a(tmp_path):
    seen.append("a")
    return 1


def test_b():
    seen.append("b")


class TestC:
    async def test_d(self):
        def test_a():
            pass


if True:
    def test_e():
        raise KeyError
"""


def test_what_is_wanted_runs_to_its_end_and_fails_and_the_rest_stays() -> None:
    text, found = failing(TEXT, {"test_a", "TestC::test_d", "test_e", "test_nowhere"})
    assert found == {"test_a", "TestC::test_d", "test_e"}
    scope = {"__name__": "control"}
    exec(compile(text, "control", "exec"), scope)
    for name, arguments in {"test_a": [None], "test_e": []}.items():
        with pytest.raises(AssertionError, match="control"):
            scope[name](*arguments)
    scope["test_b"]()
    assert scope["seen"] == ["a", "b"]
    assert text.count("raise AssertionError") == 3


@pytest.mark.parametrize("text", ["def test_a(:\n", "a\0b", "(" * 5000])
def test_what_cannot_be_read_stays_as_it_is(text: str) -> None:
    assert failing(text, {"test_a"}) == (text, set())


def test_everything_else_of_a_file_is_the_same_code() -> None:
    text, found = failing(TEXT, {"nothing"})
    assert not found
    assert ast.dump(ast.parse(text)) == ast.dump(ast.parse(TEXT))


def test_ids_name_functions_without_their_parameters() -> None:
    assert function_of("a/test_b.py::TestC::test_d[x::y-1]") == ("a/test_b.py", "TestC::test_d")
    assert function_of("a/test_b.py") == ("a/test_b.py", "")
