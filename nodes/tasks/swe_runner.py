"""Run tests with pytest and report each one; copied into the sandbox, outside of the repository.

    python3 swe_runner.py tests/test_a.py ...   < a nonce   > {"nonce": ..., "tests": {id: outcome}}

Job: outcomes by test id. Does not know: which tests should pass; only the judge outside does.
Invariants: what the tests print goes nowhere. A test is `passed` if every phase of it was.
"""

import json
import os
import sys


class Outcomes:
    """A pytest plugin that keeps the worst outcome of each test's phases."""

    def __init__(self) -> None:
        self.tests: dict[str, str] = {}

    def pytest_runtest_logreport(self, report) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001
        """Take the outcome of one phase."""
        before = self.tests.get(report.nodeid, "passed")
        self.tests[report.nodeid] = before if before != "passed" else report.outcome


def main() -> None:
    """Read the nonce, run the tests, write the report."""
    nonce = sys.stdin.read()
    channel = os.dup(1)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(nowhere, fd)
    import pytest  # noqa: PLC0415 - not before its output has nowhere to go

    sys.path.insert(0, os.getcwd())  # noqa: PTH109 - as `python -m pytest` does
    outcomes = Outcomes()
    pytest.main(["-q", "-p", "no:cacheprovider", *sys.argv[1:]], plugins=[outcomes])
    with os.fdopen(channel, "w", encoding="utf-8") as out:
        json.dump({"nonce": nonce, "tests": outcomes.tests}, out)


if __name__ == "__main__":
    main()
