"""The `rollmq` command as people and scripts meet it: what it prints, leaves and returns."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from engine import Client, Task

ROLLMQ = str(Path(sys.executable).with_name("rollmq"))
DEADLINE_S = 60.0
DRAIN_S = 1.0

TOPOLOGY = f"""\
version: 1
name: cli
durability: process
timeouts: {{heartbeat_s: 0.3, cancel_grace_s: 0.3, drain_s: {DRAIN_S:g}, retry_delay_s: 0.1}}
stages:
  - {{name: init, slots: 4}}
  - {{name: run, slots: 8, attempts: 2}}
  - {{name: eval, slots: 4}}
"""

SIMULATED = """\
router: {}
backends:
  - {name: sim, kind: simulator, options: {speed: 100}}
"""

GATED = '''\
"""Runs until the file that its payload names exists; ends at once if it names none."""

import asyncio
from pathlib import Path

from nodes.tasks import Output


def init(context):
    if context.task.payload.get("raises"):
        raise KeyError("[/no] such [thing]")
    return Output()


async def run(context):
    gate = context.task.payload.get("gate")
    while gate and not Path(gate).exists():
        await asyncio.sleep(0.02)
    return Output(data={"answer": 42})


def eval(context):
    return Output(reward=0.5)
'''

MISTAKEN = """\
version: 1
durabilty: process
stages:
  - {name: init, slot: 8}
  - {name: run, timeout_s: fast}
"""


class Folder:
    """A directory with a topology, task kinds and task files, where `rollmq` is called."""

    def __init__(self, path: Path, topology: str) -> None:
        self.path = path
        self.out = path / "out"
        (path / "topology.yaml").write_text(topology)
        (path / "kinds").mkdir()
        (path / "kinds" / "gated.py").write_text(GATED)
        self._started: list[subprocess.Popen[str]] = []

    def tasks(self, *payloads: dict[str, Any]) -> None:
        rows = (
            {"task_id": f"t-{number}", "kind": "kinds.gated", "payload": payload}
            for number, payload in enumerate(payloads)
        )
        (self.path / "tasks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def call(self, *words: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [ROLLMQ, *words],
            cwd=self.path,
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )

    def start(self, *words: str) -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            [ROLLMQ, *words],
            cwd=self.path,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._started.append(process)
        return process

    def run(self, *words: str) -> "subprocess.CompletedProcess[str]":
        return self.call(*self.run_words, *words)

    @property
    def run_words(self) -> tuple[str, ...]:
        files = ("--tasks", "tasks.jsonl", "--out", "out")
        return ("run", "topology.yaml", *files, "--group-size", "2", "--json")

    @property
    def written(self) -> list[dict[str, Any]]:
        """The whole lines of trajectories.jsonl."""
        file = self.out / "trajectories.jsonl"
        text = file.read_bytes() if file.exists() else b""
        return [json.loads(line) for line in text.splitlines(keepends=True) if line[-1:] == b"\n"]

    def processes(self) -> list[int]:
        """The processes whose command line names this directory."""
        mark, found = os.fsencode(self.path) + b"/", []
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal():
                try:
                    named = mark in (entry / "cmdline").read_bytes()
                except OSError:
                    continue
                found += [int(entry.name)] if named else []
        return found

    def end(self) -> None:
        for process in self._started:
            process.kill()
            process.communicate(timeout=DEADLINE_S)
        until(lambda: not self.processes())

    @property
    def _environment(self) -> dict[str, str]:
        return {**os.environ, "PYTHONPATH": str(self.path), "COLUMNS": "200"}


def until(holds: Callable[[], object]) -> None:
    give_up_at = time.monotonic() + DEADLINE_S
    while not holds():
        assert time.monotonic() < give_up_at
        time.sleep(0.02)


def last_line(stdout: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(stdout.splitlines()[-1])
    return found


@pytest.fixture
def folder(short_path: Path) -> Iterator[Folder]:
    folder = Folder(short_path, TOPOLOGY)
    yield folder
    folder.end()


@pytest.fixture(scope="module")
def finished() -> Iterator[tuple[Folder, "subprocess.CompletedProcess[str]"]]:
    """A run of real questions that is over."""
    with tempfile.TemporaryDirectory(prefix="rq", dir="/tmp") as directory:
        folder = Folder(Path(directory), TOPOLOGY + SIMULATED)
        source = ("reasoning-gym", "--names", "gcd,lcm", "--count", "6", "--seed", "7")
        made = folder.call("tasks", *source, "--out", "tasks.jsonl")
        assert made.returncode == 0, made.stderr
        yield folder, folder.run()
        folder.end()


def test_a_run_ends_with_its_summary_as_one_line_of_json(
    finished: tuple[Folder, "subprocess.CompletedProcess[str]"],
) -> None:
    folder, ended = finished
    assert ended.returncode == 0, ended.stderr
    assert len(ended.stdout.splitlines()) == 1
    report = last_line(ended.stdout)
    assert (report["rollouts"], report["asked"], report["interrupted"]) == (12, 12, False)
    assert report["outcomes"] == {"completed": 12}
    assert 0.0 <= report["reward_mean"] <= 1.0
    assert report["seconds"] > 0
    assert report["rollouts_per_s"] == pytest.approx(12 / report["seconds"])
    assert report["out"] == "out"
    assert list(report["stages"]) == ["init", "run", "eval"]
    assert json.loads((folder.out / "summary.json").read_text()) == report
    assert "12 of 12 rollouts" in ended.stderr
    assert last_line(folder.call("status", "out", "--json").stdout) == report
    assert "12 of 12 rollouts" in folder.call("status", "out").stdout


def test_a_run_leaves_every_rollout_with_its_tokens(
    finished: tuple[Folder, "subprocess.CompletedProcess[str]"],
) -> None:
    folder, _ = finished
    rows = folder.written
    assert len({row["rollout_id"] for row in rows}) == len(rows) == 12
    assert {row["group_size"] for row in rows} == {2}
    for row in rows:
        assert set(row["data"]) == {"init", "run", "eval"}
        assert row["reward"] == row["rewards"][row["task_id"][:3]]
        (length,) = row["arrays"]["token_ids"]["shape"]
        assert row["arrays"]["logprobs"] == {
            **row["arrays"]["logprobs"],
            "dtype": "float32",
            "shape": [length],
        }


def test_a_finished_rollout_is_shown_by_the_beginning_of_its_id(
    finished: tuple[Folder, "subprocess.CompletedProcess[str]"],
) -> None:
    folder, _ = finished
    name = folder.written[0]["rollout_id"]
    shown = folder.call("show", name, "--out", "out")
    assert shown.returncode == 0, shown.stderr
    for words in (name, "turn 1: prompt", "<answer>", "eval"):
        assert words in shown.stdout
    as_json = json.loads(folder.call("show", name, "--out", "out", "--json").stdout)
    assert as_json["rollout_id"] == name
    ambiguous = folder.call("show", name[:4], "--out", "out")
    assert (ambiguous.returncode, ambiguous.stdout) == (2, "")
    assert "12 rollouts begin with" in ambiguous.stderr


def test_a_second_run_into_the_same_place_is_refused_until_told_what_to_do(
    finished: tuple[Folder, "subprocess.CompletedProcess[str]"],
) -> None:
    folder, _ = finished
    before = folder.written
    refused = folder.run()
    assert refused.returncode == 1
    assert "say --resume, --overwrite or another --out" in refused.stderr
    assert folder.written == before

    resumed = folder.run("--resume")
    assert resumed.returncode == 0, resumed.stderr
    report = last_line(resumed.stdout)
    assert (report["rollouts"], report["rollouts_per_s"]) == (12, 0.0)
    assert folder.written == before


def test_overwrite_discards_the_run_that_was_there(folder: Folder) -> None:
    folder.tasks({})
    assert folder.run().returncode == 0
    before = {row["rollout_id"] for row in folder.written}
    again = folder.run("--overwrite")
    assert again.returncode == 0, again.stderr
    after = {row["rollout_id"] for row in folder.written}
    assert (len(before), len(after), before & after) == (2, 2, set())


def test_a_run_with_failed_rollouts_exits_with_1_and_names_what_failed(folder: Folder) -> None:
    folder.tasks({}, {"raises": True})
    ended = folder.run()
    assert ended.returncode == 1
    report = last_line(ended.stdout)
    assert report["outcomes"] == {"completed": 2, "failed": 2}
    assert report["reward_mean"] == 0.5
    [(failure, count)] = report["failures"].items()
    assert failure.startswith("init: handler: KeyError: ")
    assert count == 2
    assert "'[/no] such [thing]'" in ended.stderr


def test_a_killed_run_goes_on_where_it_was_and_writes_every_rollout_once(folder: Folder) -> None:
    gate = folder.path / "gate"
    folder.tasks(*({} for _ in range(8)), *({"gate": str(gate)} for _ in range(8)))
    killed = folder.start(*folder.run_words)
    until(lambda: len(folder.written) == 16)
    killed.kill()
    killed.communicate(timeout=DEADLINE_S)
    until(lambda: not folder.processes())
    with (folder.out / "trajectories.jsonl").open("ab") as file:
        file.write(b'{"rollout_id": "torn')
    before = folder.written
    so_far = folder.call("status", "out")
    assert "not finished; so far:\n16 of 32 rollouts" in so_far.stdout
    gate.touch()

    resumed = folder.run("--resume")

    assert resumed.returncode == 0, resumed.stderr
    report = last_line(resumed.stdout)
    assert (report["rollouts"], report["asked"]) == (32, 32)
    assert report["rollouts_per_s"] == pytest.approx(16 / report["seconds"])
    assert folder.written[:16] == before
    names = [row["rollout_id"] for row in folder.written]
    assert len(names) == len(set(names)) == 32


def test_ctrl_c_drains_sums_up_and_says_how_to_go_on(folder: Folder) -> None:
    folder.tasks({}, {"gate": "never"}, {})
    interrupted = folder.start(*folder.run_words)
    until(lambda: len(folder.written) == 4)
    interrupted.send_signal(signal.SIGINT)
    began = time.monotonic()

    stdout, stderr = interrupted.communicate(timeout=DEADLINE_S)

    assert time.monotonic() - began < 3 * (DRAIN_S + 2.0)
    assert interrupted.returncode == 130
    report = last_line(stdout)
    assert (report["rollouts"], report["asked"], report["interrupted"]) == (4, 6, True)
    assert json.loads((folder.out / "summary.json").read_text()) == report
    assert "4 of 6 rollouts" in stderr
    assert (
        "go on with: rollmq run topology.yaml --tasks tasks.jsonl --group-size 2 --out out --resume"
    ) in stderr
    assert "Traceback" not in stderr
    assert folder.processes() == []


def test_a_topology_that_is_up_tells_its_status_and_cancels(folder: Folder) -> None:
    up = folder.start("up", "topology.yaml")
    assert up.stdout is not None
    until(lambda: up.stdout.readline().startswith("ready: "))
    with Client(folder.path / "topology.yaml", "trainer-0") as client:
        client.submit(Task("t", "kinds.gated", {"gate": "never"}), 2, group_id="g")

    def leased() -> bool:
        told = folder.call("status", "topology.yaml", "--json")
        assert told.returncode == 0, told.stderr
        stages = {row["stage"]: row for row in last_line(told.stdout)["stages"]}
        return stages["run"]["leased"] == 2

    until(leased)
    for words in ("run-0", "rollouts", "window of trainer-0"):
        assert words in folder.call("status", "topology.yaml").stdout
    client_words = ("cancel", "topology.yaml", "--client", "trainer-0")
    nothing = folder.call(*client_words)
    assert (nothing.returncode, nothing.stdout) == (2, "")
    cancelled = folder.call(*client_words, "--group", "g", "--group", "x", "--json")
    assert cancelled.returncode == 0, cancelled.stderr
    answer = last_line(cancelled.stdout)
    assert {receipt["stage"] for receipt in answer["receipts"]} == {"run"}
    assert (len(answer["receipts"]), answer["unknown"]) == (2, ["x"])
    up.send_signal(signal.SIGINT)
    stdout, stderr = up.communicate(timeout=DEADLINE_S)
    assert (up.returncode, stderr) == (0, "")
    assert stdout.endswith("draining\n")
    assert folder.processes() == []


def test_a_run_may_use_a_topology_that_is_up(folder: Folder) -> None:
    up = folder.start("up", "topology.yaml")
    assert up.stdout is not None
    until(lambda: up.stdout.readline().startswith("ready: "))
    folder.tasks({}, {})
    ran = folder.run("--attach")
    assert ran.returncode == 0, ran.stderr
    assert len(folder.written) == last_line(ran.stdout)["rollouts"] == 4
    assert folder.call("status", "topology.yaml").returncode == 0
    assert up.poll() is None


def test_up_without_slurm_refuses_what_only_slurm_reads(folder: Folder) -> None:
    ended = folder.call("up", "topology.yaml", "--tasks", "tasks.jsonl", "--out", "out")
    assert (ended.returncode, "need --launcher slurm" in ended.stderr) == (1, True)


def test_status_of_a_topology_that_is_down_says_so(folder: Folder) -> None:
    told = folder.call("status", "topology.yaml")
    assert told.returncode == 1
    assert "for the broker's welcome from ipc://" in told.stderr


def test_status_of_a_directory_without_a_run_says_so(folder: Folder) -> None:
    told = folder.call("status", ".")
    assert (told.returncode, "holds no run" in told.stderr) == (1, True)


def test_check_prints_a_topology_with_every_default(folder: Folder) -> None:
    checked = folder.call("check", "topology.yaml")
    assert checked.returncode == 0
    (folder.path / "resolved.yaml").write_text(checked.stdout)
    assert folder.call("check", "resolved.yaml").stdout == checked.stdout
    as_json = last_line(folder.call("check", "topology.yaml", "--json").stdout)
    assert [stage["name"] for stage in as_json["stages"]] == ["init", "run", "eval"]
    assert as_json["timeouts"]["drain_s"] == DRAIN_S


@pytest.mark.parametrize("command", ["check", "graph", "up", "status"])
def test_every_mistake_of_a_topology_is_named_with_its_line(folder: Folder, command: str) -> None:
    (folder.path / "wrong.yaml").write_text(MISTAKEN)
    checked = folder.call(command, "wrong.yaml")
    assert (checked.returncode, checked.stdout) == (2, "")
    lines = checked.stderr.splitlines()
    assert [line.split(": ")[0] for line in lines] == [f"wrong.yaml:{n}" for n in (2, 4, 5)]
    assert 'did you mean "durability"?' in lines[0]
    assert 'did you mean "slots"?' in lines[1]
    assert "expected seconds" in lines[2]


@pytest.mark.parametrize(
    ("form", "words"),
    [("ascii", ["init", "broker"]), ("mermaid", ["flowchart"]), ("svg", ["<svg", "</svg>"])],
)
def test_a_topology_is_drawn_in_three_formats(folder: Folder, form: str, words: list[str]) -> None:
    drawn = folder.call("graph", "topology.yaml", "--format", form)
    assert (drawn.returncode, drawn.stderr) == (0, "")
    for word in words:
        assert word in drawn.stdout


def test_a_bad_task_file_is_refused_with_every_bad_line(folder: Folder) -> None:
    rows = ['{"task_id": "a", "kind": "k", "payload": {}}', "{", '{"task_id": "a", "kind": 1}']
    (folder.path / "tasks.jsonl").write_text("\n".join(rows))
    ended = folder.run()
    assert (ended.returncode, ended.stdout) == (2, "")
    assert [line.split(": ")[0] for line in ended.stderr.splitlines()] == [
        "tasks.jsonl:2",
        "tasks.jsonl:3",
    ]
    assert not folder.out.exists()


def test_a_task_file_that_is_not_there_is_wrong_input(folder: Folder) -> None:
    ended = folder.run()
    assert ended.returncode == 2
    assert ended.stderr == "tasks.jsonl:1: cannot be read: No such file or directory\n"


@pytest.mark.parametrize(
    "command",
    ["check", "graph", "run", "up", "status", "cancel", "tasks", "tasks reasoning-gym", "show"],
)
def test_the_help_of_every_command_has_an_example(folder: Folder, command: str) -> None:
    helped = folder.call(*command.split(), "--help")
    assert helped.returncode == 0
    assert f"example: rollmq {command} " in helped.stdout
