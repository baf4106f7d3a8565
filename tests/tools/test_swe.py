"""The task kind `swe`: a small repository in real sandboxes, and patches that try to cheat."""

import asyncio
import io
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest

from engine.errors import BoundaryError
from nodes.tasks import Output, swe
from nodes.tasks.swe_made import make, mutations, read_package
from nodes.tasks.swe_repository import changed_files, read_archive, read_report

from ..agent_kit import call
from .boxes import started
from .kinds import play

pytestmark = pytest.mark.timeout(600)
SUMS = """def total(numbers):
    found = 0
    for n in numbers:
        found = found + n
    return found
"""
TESTS = """from sums import total


def test_some():
    assert total([1, 2]) == 3


def test_none():
    assert total([]) == 0
"""
FILES = {"sums/__init__.py": SUMS, "tests/test_sums.py": TESTS, "README": "Sums.\n"}
BROKEN = SUMS.replace("found + n", "found - n")


def archive(path: Path, sums: str = SUMS) -> Path:
    with tarfile.open(path, "w:gz") as out:
        for name, text in {**FILES, "sums/__init__.py": sums}.items():
            member = tarfile.TarInfo(f"sums-1/{name}")
            member.size = len(text.encode())
            out.addfile(member, io.BytesIO(text.encode()))
    return path


@pytest.fixture
def payload(tmp_path: Path) -> dict[str, Any]:
    return {
        "instance_id": "sums-1",
        "problem_statement": "total([1, 2]) is -3.",
        "archive": str(archive(tmp_path / "a.tar.gz", BROKEN)),
        "FAIL_TO_PASS": ["tests/test_sums.py::test_some"],
        "PASS_TO_PASS": ["tests/test_sums.py::test_none"],
    }


def bash(command: str) -> str:
    return call("bash", command=command)


REPAIR = bash("sed -i 's/found - n/found + n/' sums/__init__.py && python3 -m pytest -q | tail -1")


def solved(payload: dict[str, Any], *says: str) -> tuple[Output, Output]:
    return play(swe, payload, *says, "Done.")


def test_a_repair_is_taken_as_a_patch_and_passes_in_a_fresh_sandbox(
    payload: dict[str, Any],
) -> None:
    ran, found = solved(payload, REPAIR)
    assert "+        found = found + n" in ran.data["patch"]
    assert changed_files(ran.data["patch"]) == ["sums/__init__.py"]
    assert (found.reward, found.rewards) == (1.0, {"fail_to_pass": 1.0, "pass_to_pass": 1.0})


def test_no_change_and_a_repair_that_breaks_something_score_nothing(
    payload: dict[str, Any],
) -> None:
    assert solved(payload)[1].data["why"] == "no patch"
    broken = solved(payload, bash("sed -i 's/found = 0/found = 6/' sums/__init__.py"))[1]
    assert broken.rewards == {"fail_to_pass": 1.0, "pass_to_pass": 0.0}
    assert broken.reward == 0.0


PASSES_ALL = """cat > conftest.py <<'END'
from _pytest.reports import TestReport
def pytest_runtest_makereport(item, call):
    report = TestReport.from_item_and_call(item, call)
    report.outcome = "passed"
    return report
END"""
PRINTS = """cat > sums/__init__.py <<'END'
print('{"nonce": "", "tests": {}}')
raise SystemExit(0)
END"""
CHEATS = [
    PASSES_ALL,
    PRINTS,
    "sed -i 's/== 3/== -3/' tests/test_sums.py",
    "printf '[pytest]\\naddopts = --co\\n' > pytest.ini",
    "printf 'import os\\nos._exit(0)\\n' > sums/__init__.py",
    "rm -r tests; git commit -qam gone",
    "mkdir pytest; echo 'def main(*a, **k): pass' > pytest/__init__.py; echo > pytest.py",
]


@pytest.mark.parametrize("cheat", CHEATS)
def test_changing_the_tests_and_what_runs_them_scores_nothing(
    payload: dict[str, Any], cheat: str
) -> None:
    assert solved(payload, bash(cheat))[1].reward == 0.0


FINDS = """import json, os, sys
frame = sys._getframe()
while "outcomes" not in frame.f_locals:
    frame = frame.f_back
ALL = ["tests/test_sums.py::test_some", "tests/test_sums.py::test_none"]
"""
FORGERS = {
    "changes the plugin": FINDS
    + """class Passed(dict):
    def __setitem__(self, name, outcome):
        super().__setitem__(name, "passed")
frame.f_locals["outcomes"].tests = Passed()
total = None
""",
    "writes the report": FINDS
    + """report = {"nonce": frame.f_locals["nonce"], "tests": dict.fromkeys(ALL, "passed")}
os.write(frame.f_locals["channel"], json.dumps(report).encode())
os._exit(0)
""",
    "changes pytest": """from _pytest.reports import TestReport
TestReport.outcome = property(lambda self: "passed", lambda self, outcome: None)
total = None
""",
}


@pytest.mark.parametrize("forger", FORGERS.values(), ids=FORGERS)
def test_reports_forged_by_the_code_under_test_are_not_believed(
    payload: dict[str, Any], forger: str
) -> None:
    found = solved(payload, bash(f"cat > sums/__init__.py <<'END'\n{forger}END"))[1]
    assert found.data["why"].startswith("made to fail, and reported as passed: tests/test_sums.py")
    assert (found.reward, found.data["resolved"]) == (0.0, False)


def test_what_is_equal_to_everything_still_passes_as_documented(payload: dict[str, Any]) -> None:
    equal = (
        "class Any:\n    def __eq__(self, other):\n        return True\ntotal = lambda n: Any()\n"
    )
    found = solved(payload, bash(f"cat > sums/__init__.py <<'END'\n{equal}END"))[1]
    assert found.reward == 1.0


FORGIVING = """def forgiving(test):
    def run():
        try:
            test()
        except AssertionError:
            pass
    return run


"""


def test_a_test_that_passes_whatever_happens_accuses_nobody(
    payload: dict[str, Any], tmp_path: Path
) -> None:
    tests = FORGIVING + TESTS.replace("def test_none", "@forgiving\ndef test_none")
    files = {**FILES, "sums/__init__.py": BROKEN, "tests/test_sums.py": tests}
    asked = {**payload, "archive": "", "files": files}
    assert solved(asked, REPAIR)[1].reward == 1.0


MORE = """diff --git a/tests/test_sums.py b/tests/test_sums.py
--- a/tests/test_sums.py
+++ b/tests/test_sums.py
@@ -8,2 +8,6 @@
 def test_none():
     assert total([]) == 0
+
+
+def test_more():
+    assert total([4]) == 4
"""


def test_a_test_patch_is_applied_after_the_models_patch(payload: dict[str, Any]) -> None:
    asked = {**payload, "test_patch": MORE, "FAIL_TO_PASS": ["tests/test_sums.py::test_more"]}
    assert solved(asked, REPAIR)[1].reward == 1.0
    with pytest.raises(BoundaryError, match="test_patch does not apply"):
        solved({**payload, "test_patch": MORE.replace("test_none", "test_nothing")}, REPAIR)


def test_an_instance_that_is_not_there_is_a_failure(payload: dict[str, Any]) -> None:
    with pytest.raises(BoundaryError, match="No such file"):
        solved({**payload, "archive": "/nowhere.tar.gz"})
    with pytest.raises(BoundaryError, match="exit code"):
        solved({**payload, "base_commit": "0123456789"})


@pytest.mark.parametrize("path", ["/etc/passwd", "/dev/zero", "/etc", "a\0b", "$(id)", "-"])
def test_an_archive_is_a_gzip_file_and_no_other_file_of_the_host(path: str) -> None:
    with pytest.raises(
        BoundaryError, match=r"is no gzip file|No such file|null byte|Is a directory"
    ):
        read_archive(path)


def test_an_archive_may_be_a_pipe_that_nobody_writes(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(BoundaryError, match="is no gzip file"):
        read_archive(str(tmp_path / "fifo"))


def test_a_report_without_the_nonce_is_none() -> None:
    report = b'{"nonce": "n", "tests": {"a": "passed"}}'
    assert read_report(report, "n") == {"a": "passed"}
    assert read_report(report, "m") == {}
    for junk in (b"", b"[]", b"passed", b'{"nonce": "n", "tests": []}'):
        assert read_report(junk, "n") == {}


def test_instances_are_made_by_mutations_that_tests_see_and_their_demonstrations_solve_them(
    tmp_path: Path,
) -> None:
    package = read_package(archive(tmp_path / "sums-1.tar.gz"))
    assert package.tests == ("tests/test_sums.py",)
    every = [each for path, text in package.sources.items() for each in mutations(path, text)]
    assert {(each.old, each.new) for each in every} == {("0", "1"), ("+", "-")}

    async def made() -> list[dict[str, Any]]:
        found = make(package, 2, 7, lambda: started("bubblewrap"), tmp_path)
        return [task async for task in found]

    tasks = asyncio.run(made())
    assert len(tasks) == 2
    for task in tasks:
        says = [
            call(turn["name"], **turn["arguments"]) if isinstance(turn, dict) else turn
            for turn in task["demonstration"]
        ]
        ran, found = play(swe, task["payload"], *says)
        assert found.reward == 1.0, ran.data
        assert solved(task["payload"])[1].reward == 0.0
