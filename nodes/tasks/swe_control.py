"""Tests that cannot pass: the control of a run whose reports cannot be trusted by themselves.

    def test_some():                      def test_some():
        assert total([1, 2]) == 3             try:
                                                  assert total([1, 2]) == 3
                                              finally:
                                                  raise AssertionError("control")

Code under test runs in the process that reports on it, and may report what it likes. In a control
run every required test does what it always does, and then fails. Whoever reports it as passed lies,
or it passes whatever happens.

Job: make the tests of a file fail at their end.
Does not know: sandboxes, patches, or what follows from a lie.
Invariants: a file that cannot be read as Python stays as it is, and no test of it is claimed to
fail. Names, parameters, fixtures and marks of tests stay.
"""

import ast
from collections.abc import Collection

Function = ast.FunctionDef | ast.AsyncFunctionDef


def failing(text: str, wanted: Collection[str]) -> tuple[str, set[str]]:
    """Return a file's text in which these functions fail, and those that were there.

    `wanted` are names as in pytest's ids, with their classes and without parameters:
    `test_a`, `TestB::test_c`.
    """
    try:
        tree = ast.parse(text)
        maker = _Failing(wanted)
        changed = ast.fix_missing_locations(maker.visit(tree))
        return ast.unparse(changed) + "\n", maker.found
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return text, set()


def function_of(test_id: str) -> tuple[str, str]:
    """Return a test's file, and its function as `failing` takes it."""
    file, _, name = test_id.partition("::")
    return file, name.partition("[")[0]


class _Failing(ast.NodeTransformer):
    def __init__(self, wanted: Collection[str]) -> None:
        self._wanted = wanted
        self._classes: list[str] = []
        self.found: set[str] = set()

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        self._classes.append(node.name)
        self.generic_visit(node)
        self._classes.pop()
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        return self._visit_function(node)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> ast.AST:
        return self._visit_function(node)

    def _visit_function(self, node: Function) -> Function:
        name = "::".join([*self._classes, node.name])
        if name in self._wanted:
            self.found.add(name)
            ending = ast.parse("raise AssertionError('control')").body
            node.body = [ast.Try(node.body, handlers=[], orelse=[], finalbody=ending)]
        return node
