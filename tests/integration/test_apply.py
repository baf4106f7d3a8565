"""`rollmq apply`: what changes in a running topology, what does not, and how it is told."""

import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from engine import Client, NodeFailed, Task
from engine.cli import main
from engine.supervisor import Supervisor
from engine.topology import load
from tests.topology_kit import ECHO, QUICK, Site, running_topology

WAIT_S = 90.0
HOSTS = QUICK.replace("slots: 4", "slots: 4, workers: {a: 1}") + "hosts: {a: {}, b: {}}\n"

Edit = Callable[..., None]


@pytest.fixture
def site(short_path: Path) -> Iterator[Site]:
    with running_topology(short_path, HOSTS, {"echo": ECHO}, ready_s=WAIT_S) as running:
        yield running


def edit(site: Site, change: Callable[[dict[str, Any]], None]) -> None:
    path = site.topology.path
    document = yaml.safe_load(path.read_text())
    change(document)
    path.write_text(yaml.safe_dump(document))


def apply(site: Site, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, Any]:
    """Apply without waiting for the launcher, which is this process."""
    status = main(["apply", str(site.topology.path), "--json", "--wait-s", "0", *words])
    told = capsys.readouterr()
    return status, json.loads(told.out) if told.out else told.err


def workers(site: Site) -> dict[str, tuple[str, int, int]]:
    with Client(site.topology.path, "observer", connect_s=WAIT_S) as client:
        found = client.status()["workers"]
    return {w["node"]: (w["host"], w["slots"], w["bytes"]) for w in found if not w["silent"]}


def test_a_dry_run_shows_and_changes_nothing(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    edit(site, lambda file: file["stages"][1].update(workers={"a": 1, "b": 2}))
    before = site.supervisor.pids
    status, told = apply(site, capsys, "--dry-run")
    assert status == 0
    assert [(each["what"], each["was"], each["now"]) for each in told["changes"]] == [
        ("stages.run.workers.b", "-", "2"),
        ("stages.run.ready", "4", "8"),
    ]
    assert site.supervisor.pids == before


def test_workers_come_and_go_and_others_get_other_slots_without_a_restart(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    host = site.supervisor.pids["run-0"]

    def grow(file: dict[str, Any]) -> None:
        file["stages"][1].update(workers={"a": 1, "b": 2}, slots=6)
        file["log_level"] = "debug"

    edit(site, grow)
    apply(site, capsys)
    found = site.until(
        lambda: (
            (now := workers(site)).keys() >= {"run-0.b", "run-1.b"} and now["run-0"][1] == 6 and now
        ),
        WAIT_S,
    )
    assert found["run-0.b"][:2] == ("b", 6)
    assert site.supervisor.pids["run-0"] == host
    with Client(site.topology.path, "trainer", connect_s=WAIT_S) as client:
        client.submit(Task("t", "kinds.echo", {}), 32)
        assert {rollout.outcome for rollout in client.rollouts()} == {"completed"}
    edit(site, lambda file: file["stages"][1].update(workers={"a": 1}))
    apply(site, capsys)
    site.until(lambda: workers(site).keys() == {"init-0", "run-0", "eval-0"}, WAIT_S)
    site.until(lambda: set(site.supervisor.pids) == {"broker", "init-0", "run-0", "eval-0"}, WAIT_S)
    assert not site.supervisor.restarts


def test_what_needs_a_restart_is_named_and_left_and_the_rest_is_done(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    def change(file: dict[str, Any]) -> None:
        file["durability"] = "power"
        file["timeouts"]["retry_delay_s"] = 0.2

    edit(site, change)
    _, told = apply(site, capsys, "--dry-run")
    assert [(each["what"], each["live"]) for each in told["changes"]] == [
        ("timeouts.retry_delay_s", True),
        ("durability", False),
    ]
    with pytest.MonkeyPatch.context() as patch:  # this process has to answer as the launcher
        patch.setattr("engine.apply._wait", lambda *_: None)
        status, told = apply(site, capsys)
    assert (status, told["left"], told["revision"]) == (3, 1, 2)
    status, told = apply(site, capsys, "--dry-run")
    assert [each["what"] for each in told["changes"]] == ["durability"]
    assert main(["apply", str(site.topology.path), "--dry-run"]) == 3
    shown = capsys.readouterr().out.splitlines()
    assert shown[1].split() == ["durability", "process", "power", "restart"]
    assert shown[2] == "not applied, because it needs a restart: 1 of 1"


def test_a_topology_that_does_not_fit_together_is_refused(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    edit(site, lambda file: file["stages"][0].update(workers={"c": 1}))
    assert main(["apply", str(site.topology.path)]) == 2
    assert "no host 'c'" in capsys.readouterr().err


def test_a_broker_that_restarts_goes_on_with_what_was_applied(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    edit(site, lambda file: file["stages"][2].update(workers={"a": 2}, slots=3))
    apply(site, capsys)
    site.until(lambda: workers(site).get("eval-1"), WAIT_S)
    os.kill(site.supervisor.pids["broker"], signal.SIGKILL)
    site.until(lambda: site.supervisor.restarts.get("broker"), WAIT_S)
    site.until(lambda: workers(site).get("eval-1") == ("a", 3, 256 * 2**20), WAIT_S)
    _, told = apply(site, capsys, "--dry-run")
    assert told["changes"] == []


def test_a_host_that_waits_in_vain_names_the_broker_and_where_it_was_looked_for(
    short_path: Path,
) -> None:
    file = short_path / "topology.yaml"
    file.write_text(HOSTS.replace("run, slots: 4, workers: {a: 1}", "run, workers: {b: 1}"))
    with Supervisor(load(file), "b") as supervisor, pytest.raises(NodeFailed) as caught:
        supervisor.wait_ready(1.0)
    told = str(caught.value)
    assert "the broker on host 'a' has not answered for 1 s at ipc://" in told
    assert "`rollmq up topology.yaml --host a`" in told


def test_hosts_of_one_machine_start_in_any_order_and_share_a_run_directory(
    short_path: Path,
) -> None:
    (short_path / "kinds").mkdir()
    file = short_path / "topology.yaml"
    file.write_text(HOSTS.replace("run, slots: 4, workers: {a: 1}", "run, workers: {b: 1}"))
    with Supervisor(load(file), "b") as second, Supervisor(load(file), "a") as first:
        first.wait_ready(WAIT_S)
        second.wait_ready(WAIT_S)
        assert set(second.pids) == {"run-0.b"}
        again = Supervisor(load(file), "b")
        with pytest.raises(NodeFailed, match="is in use for host 'b' by the launcher"):
            again.__enter__()
