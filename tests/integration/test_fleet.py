"""Backends, weights and aborts from a client's call to the backend, all of it real processes."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from engine import (
    AsyncClient,
    BackendState,
    BrokerUnreachable,
    Client,
    NodeRefused,
    Published,
    Rollout,
    Task,
)
from engine.process import child_environment

from ..topology_kit import Site, running_topology

ROLLMQ = str(Path(sys.executable).with_name("rollmq"))
DEADLINE_S = 60.0
TOPOLOGY = """\
version: 1
durability: process
timeouts: {heartbeat_s: 0.4, lease_s: 8, cancel_grace_s: 4, drain_s: 2, connect_s: 30}
stages:
  - {name: run, slots: 16, timeout_s: 120}
router: {}
"""
SIMULATED = """\
backends:
  - {name: sim, kind: simulator, count: 2, options: {speed: 2}}
"""
TALK = '''\
"""Asks for `turns` completions of `tokens` tokens, and leaves the spans of each."""

import numpy as np

from nodes.tasks import Output, Sampling


async def run(context):
    prompt, spans = np.arange(5, 9, dtype=np.int32), []
    for _ in range(context.task.payload["turns"]):
        sampling = Sampling(max_tokens=context.task.payload["tokens"])
        made = await context.model.generate(context.rollout_id, prompt, sampling)
        context.spent(turns=1, tokens=len(made.token_ids))
        prompt = np.concatenate([prompt, made.token_ids])
        spans.append([made.finish_reason, made.policy_spans.tolist()])
    return Output(data={"spans": spans}, reward=1.0, final=True)
'''


class Fleet:
    """A running topology, fake backends beside it, and a client."""

    def __init__(self, site: Site, client: Client, folder: Path) -> None:
        self.site = site
        self.client = client
        self.notes = folder / "notes"
        self.fakes: dict[str, subprocess.Popen[bytes]] = {}

    def fake(self, name: str, *words: str) -> None:
        command = [sys.executable, "-m", "tests.fake_backend", "--name", name]
        command += ["--topology", str(self.site.topology.path), "--loads", str(self.notes), *words]
        environment = {**child_environment(), "PYTHONPATH": os.pathsep.join(sys.path)}
        self.fakes[name] = subprocess.Popen(command, env=environment)

    def kill(self, name: str) -> None:
        self.fakes[name].kill()
        self.fakes[name].wait(DEADLINE_S)

    def backends(self) -> tuple[BackendState, ...]:
        """Ask briefly: whoever looks until it finds something also restarts a killed router."""
        try:
            return self.client.backends(1.0)
        except BrokerUnreachable:
            return ()

    def backend(self, name: str) -> BackendState | None:
        return {state.name: state for state in self.backends()}.get(name)

    def sampled(self, least: int) -> bool:
        """Whether every backend has sampled so much of each of its requests."""
        return all(state.figures.get("least", 0) >= least for state in self.backends())

    def tokens(self, name: str) -> float:
        found = self.backend(name)
        return found.figures.get("tokens", 0.0) if found is not None else 0.0

    def until_state(self, name: str, wanted: str) -> BackendState:
        def look() -> BackendState | None:
            found = self.backend(name)
            return found if found is not None and found.state == wanted else None

        return self.site.until(look, DEADLINE_S)

    def submit(self, count: int, *, turns: int = 1, tokens: int = 10_000) -> set[str]:
        task = Task("t", "kinds.talk", {"turns": turns, "tokens": tokens})
        return set(self.client.submit(task, count))

    def running(self) -> int:
        return sum(state.running for state in self.backends())

    def finish(self, asked: set[str]) -> list[Rollout]:
        give_up_at = time.monotonic() + DEADLINE_S
        rollouts = []
        for rollout in self.client.run((), idle=self.site.supervisor.watch):
            rollouts.append(rollout)
            assert time.monotonic() < give_up_at
        assert sorted(rollout.rollout_id for rollout in rollouts) == sorted(asked)
        return rollouts

    def close(self) -> None:
        for process in self.fakes.values():
            process.kill()
            process.wait(DEADLINE_S)


@contextmanager
def fleet_of(folder: Path, text: str = TOPOLOGY) -> Iterator[Fleet]:
    with (
        running_topology(folder, text, {"talk": TALK}) as site,
        Client(site.topology.path, "trainer", connect_s=30.0) as client,
    ):
        fleet = Fleet(site, client, folder)
        try:
            yield fleet
        finally:
            fleet.close()


@pytest.fixture
def fleet(short_path: Path) -> Iterator[Fleet]:
    with fleet_of(short_path) as found:
        yield found


def versions(rollout: Rollout) -> list[int]:
    return [version for _, spans in rollout.data["run"]["spans"] for _, _, version in spans]


def test_weights_are_published_in_mid_run_and_every_token_says_its_version(fleet: Fleet) -> None:
    for name in ("fake-0", "fake-1"):
        fleet.fake(name, "--tokens", "200")
    for name in ("fake-0", "fake-1"):
        fleet.until_state(name, "open")
    asked = fleet.submit(4)
    fleet.site.until(lambda: fleet.running() == 4 and fleet.sampled(3), DEADLINE_S)
    published = fleet.client.publish(1, "/weights/1")
    assert (published.policy_version, published.backends) == (1, ("fake-0", "fake-1"))
    assert fleet.client.publish(1, "/weights/1").backends == ("fake-0", "fake-1")
    for rollout in fleet.finish(asked):
        assert rollout.outcome == "completed", rollout.failures
        assert versions(rollout) == [0, 1]
        assert [end for *_, end, _ in rollout.data["run"]["spans"][0][1]][-1] == 200
    later = fleet.finish(fleet.submit(2))
    assert [versions(rollout) for rollout in later] == [[1], [1]]
    notes = fleet.notes.read_text()
    assert "fake-0 load 1 /weights/1" in notes
    salts = {line.split("salt ")[1] for line in notes.splitlines() if "salt " in line}
    assert "0" in salts
    assert any(salt.startswith("1.") for salt in salts)


def test_a_trainer_puts_the_weights_there_itself_while_every_backend_is_paused(
    fleet: Fleet,
) -> None:
    for name in ("fake-0", "fake-1"):
        fleet.fake(name)
        fleet.until_state(name, "open")
    seen: list[str] = []

    def put() -> None:
        seen.append(fleet.notes.read_text())

    assert fleet.client.publish(3, put=put).backends == ("fake-0", "fake-1")
    assert all(f"{name} pause" in seen[0] for name in ("fake-0", "fake-1"))
    assert "resume" not in seen[0]
    assert "load 3" not in seen[0]
    assert [state.policy_version for state in fleet.client.backends()] == [3, 3]

    def fail() -> None:
        raise OSError("no link")

    with pytest.raises(OSError, match="no link"):
        fleet.client.publish(4, put=fail)
    assert [state.policy_version for state in fleet.client.backends()] == [3, 3]
    assert {state.state for state in fleet.client.backends()} == {"open"}


@pytest.mark.parametrize("mode", ["wait", "abort"])
def test_a_publish_waits_for_running_requests_or_aborts_them(fleet: Fleet, mode: Any) -> None:
    fleet.fake("fake-0", "--tokens", "60")
    fleet.until_state("fake-0", "open")
    asked = fleet.submit(2)
    fleet.site.until(lambda: fleet.running() == 2, DEADLINE_S)
    assert fleet.client.publish(1, "/weights/1", mode=mode).backends == ("fake-0",)
    for rollout in fleet.finish(asked):
        reason, spans = rollout.data["run"]["spans"][0]
        assert reason == ("abort" if mode == "abort" else "stop")
        assert mode == "abort" or spans == [[0, 60, 0]]
        assert set(versions(rollout)) <= {0}


def test_a_publish_that_one_backend_cannot_follow_is_undone_everywhere(fleet: Fleet) -> None:
    fleet.fake("fake-0")
    fleet.until_state("fake-0", "open")
    fleet.client.publish(1, "/weights/1")
    fleet.fake("fake-1", "--version", "1", "--refuse-loads")
    fleet.until_state("fake-1", "open")
    with pytest.raises(NodeRefused, match="fake-1: update_weights: cannot read /weights/2"):
        fleet.client.publish(2, "/weights/2")
    assert [state.policy_version for state in fleet.client.backends()] == [1, 1]
    assert {state.state for state in fleet.client.backends()} == {"open"}
    assert "fake-0 load 1 /weights/1\n" in fleet.notes.read_text().split("load 2 /weights/2\n")[1]


def test_a_backend_and_a_router_that_start_later_are_brought_to_the_published_weights(
    fleet: Fleet,
) -> None:
    fleet.fake("fake-0")
    fleet.until_state("fake-0", "open")
    fleet.client.publish(5, "/weights/5")
    os.kill(fleet.site.supervisor.pids["router"], signal.SIGKILL)
    fleet.fake("fake-1")
    assert fleet.until_state("fake-1", "open").policy_version == 5
    assert fleet.until_state("fake-0", "open").policy_version == 5
    assert "fake-1 load 5 /weights/5" in fleet.notes.read_text()


def test_a_publish_survives_a_router_that_is_killed_under_it(fleet: Fleet) -> None:
    for name in ("fake-0", "fake-1"):
        fleet.fake(name, "--slow-load-s", "2")
    for name in ("fake-0", "fake-1"):
        fleet.until_state(name, "open")
    script = (
        "import sys; from engine import Client\n"
        "with Client(sys.argv[1]) as client: print(client.publish(1, '/weights/1'))"
    )
    command = [sys.executable, "-c", script, str(fleet.site.topology.path)]
    publisher = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    fleet.site.until(lambda: fleet.notes.exists() and "load 1" in fleet.notes.read_text(), 30.0)
    os.kill(fleet.site.supervisor.pids["router"], signal.SIGKILL)
    fleet.site.until(lambda: publisher.poll() is not None, DEADLINE_S)
    assert publisher.returncode == 0
    assert "policy_version=1" in publisher.communicate()[0]
    for name in ("fake-0", "fake-1"):
        assert fleet.until_state(name, "open").policy_version == 1


def test_a_backend_whose_answers_are_misaligned_is_refused_and_never_used(fleet: Fleet) -> None:
    fleet.fake("bad-0", "--short-logprobs", "1")
    assert "token IDs but" in fleet.until_state("bad-0", "refused").reason
    asked = fleet.submit(2, tokens=4)
    fleet.fake("fake-0")
    for rollout in fleet.finish(asked):
        assert rollout.outcome == "completed"
    assert fleet.notes.read_text().count("bad-0 salt") == 1
    assert "backend refused" in fleet.site.log("router")


def test_a_backend_that_keeps_failing_is_left_until_its_probe_succeeds(fleet: Fleet) -> None:
    fleet.fake("fake-0", "--errors", "4")
    fleet.until_state("fake-0", "open")
    for rollout in fleet.finish(fleet.submit(3, tokens=4)):
        assert rollout.outcome == "completed", rollout.failures
    assert "requests failed in a row" in fleet.site.log("router")


def test_the_receipt_of_a_cancelled_rollout_counts_the_tokens_of_its_aborted_request(
    fleet: Fleet,
) -> None:
    fleet.fake("fake-0", "--tokens", "100000", "--token-s", "0.01")
    fleet.until_state("fake-0", "open")
    asked = fleet.submit(3)
    began = time.monotonic()
    fleet.site.until(lambda: fleet.running() == 3, DEADLINE_S)
    fleet.site.until(lambda: fleet.sampled(20), DEADLINE_S)
    answer = fleet.client.cancel(asked)
    took_s = time.monotonic() - began
    assert {receipt.rollout_id for receipt in answer.receipts} == asked
    for receipt in answer.receipts:
        assert 20 <= receipt.usage.tokens <= 100 * took_s + 500, receipt
        assert receipt.usage.turns == 0
    assert fleet.running() == 0


@pytest.mark.parametrize("gone", ["backend", "router"])
def test_a_cancel_does_not_wait_for_the_count_of_what_is_gone(fleet: Fleet, gone: str) -> None:
    fleet.fake("fake-0", "--tokens", "100000")
    fleet.until_state("fake-0", "open")
    asked = fleet.submit(1)
    fleet.site.until(lambda: fleet.running() == 1, DEADLINE_S)
    if gone == "router":
        os.kill(fleet.site.supervisor.pids["router"], signal.SIGKILL)
    else:
        fleet.fakes["fake-0"].send_signal(signal.SIGSTOP)
    answer = fleet.client.cancel(asked, timeout_s=DEADLINE_S)
    assert [receipt.rollout_id for receipt in answer.receipts] == list(asked)


def test_a_router_killed_in_mid_run_loses_no_rollout(fleet: Fleet) -> None:
    for name in ("fake-0", "fake-1"):
        fleet.fake(name, "--tokens", "40", "--capacity", "8")
        fleet.until_state(name, "open")
    asked = fleet.submit(12, turns=4)
    fleet.site.until(lambda: fleet.running() >= 8, DEADLINE_S)
    os.kill(fleet.site.supervisor.pids["router"], signal.SIGKILL)
    for rollout in fleet.finish(asked):
        assert (rollout.outcome, rollout.failures) == ("completed", ())
    assert fleet.site.supervisor.restarts["router"] == 1


def test_a_backend_killed_in_mid_turn_costs_no_rollout_and_no_attempt(fleet: Fleet) -> None:
    for name in ("fake-0", "fake-1"):
        fleet.fake(name, "--tokens", "40", "--capacity", "8")
        fleet.until_state(name, "open")
    asked = fleet.submit(12, turns=2)
    fleet.site.until(lambda: fleet.running() >= 8, DEADLINE_S)
    fleet.kill("fake-0")
    for rollout in fleet.finish(asked):
        assert (rollout.outcome, rollout.failures) == ("completed", ())


def _name(state: BackendState) -> str:
    return state.name


def rollmq(fleet: Fleet, verb: str, *words: str) -> "subprocess.CompletedProcess[str]":
    command = [ROLLMQ, "backends", verb, str(fleet.site.topology.path), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, check=False)


def states(told: "subprocess.CompletedProcess[str]") -> dict[str, dict[str, Any]]:
    assert told.returncode == 0, told.stderr
    return {each["name"]: each for each in json.loads(told.stdout)}


def test_backends_are_added_drained_and_removed_while_a_topology_runs(short_path: Path) -> None:
    with fleet_of(short_path, TOPOLOGY + SIMULATED) as fleet:
        for name in ("sim-0", "sim-1"):
            fleet.until_state(name, "open")
        words = ("--kind", "simulator", "--name", "extra", "--options", '{"speed": 50}', "--json")
        assert states(rollmq(fleet, "add", *words))["extra-0"]["added"]
        fleet.until_state("extra-0", "open")
        assert states(rollmq(fleet, "drain", "sim-0", "--json"))["sim-0"]["draining"]
        assert states(rollmq(fleet, "remove", "sim-1", "--json"))["sim-1"]["state"] == "removed"
        fleet.finish(fleet.submit(4, tokens=4))
        fleet.site.until(lambda: fleet.tokens("extra-0") >= 4 * 4, DEADLINE_S)
        os.kill(fleet.site.supervisor.pids["router"], signal.SIGKILL)
        fleet.until_state("extra-0", "open")
        assert fleet.until_state("sim-0", "open").draining
        fleet.until_state("sim-1", "removed")
        assert "extra-0" in rollmq(fleet, "list").stdout
        assert fleet.client.add_backend({}, name="sim-1")
        fleet.until_state("sim-1", "open")
        assert not states(rollmq(fleet, "drain", "sim-0", "--undo", "--json"))["sim-0"]["draining"]
        rollmq(fleet, "remove", "extra")
        gone: Callable[[], bool] = lambda: set(map(_name, fleet.backends())) == {"sim-0", "sim-1"}  # noqa: E731
        fleet.site.until(gone, DEADLINE_S)
        parts = {
            part["name"]: part for node in fleet.client.status()["nodes"] for part in node["parts"]
        }
        assert parts["sim-0"]["figures"].keys() >= {"sessions", "hit_rate", "policy_version"}


def test_the_client_for_asyncio_publishes_and_lists_too(fleet: Fleet) -> None:
    fleet.fake("fake-0")
    fleet.until_state("fake-0", "open")

    async def publish() -> tuple[Published, tuple[BackendState, ...]]:
        async with AsyncClient(fleet.site.topology.path, connect_s=30.0) as client:
            with pytest.raises(NodeRefused, match="no backend 'nobody'"):
                await client.drain_backend("nobody")
            return await client.publish(4, "/weights/4"), await client.backends()

    published, (state,) = asyncio.run(publish())
    assert published.backends == ("fake-0",)
    assert (state.name, state.policy_version) == ("fake-0", 4)


def test_a_wrong_wish_is_refused_with_what_would_be_right(fleet: Fleet) -> None:
    wrong = {
        ("add", "--kind", "mystery"): "no kind 'mystery'; there are simulator, vllm",
        ("add", "--kind", "simulator", "--name", "No Name"): "expected a name of 1 to 24",
        ("add", "--kind", "simulator", "--name", "run"): "is the name of stages[0] already",
        ("drain", "nobody"): "no backend 'nobody'; there are none",
    }
    for (verb, *words), why in wrong.items():
        told = rollmq(fleet, verb, *words)
        assert (told.returncode, why in told.stderr) == (1, True), told.stderr
    assert rollmq(fleet, "add", "--options", "[1]").returncode == 2
    assert fleet.client.backends() == ()
