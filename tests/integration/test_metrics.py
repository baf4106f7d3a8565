"""The exporter as a process of a topology, scraped over HTTP, over IPC and under keys."""

import os
import signal
import socket
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from engine import Client, Task

from ..security.kit import TEXT as KEYED
from ..security.kit import keyed
from ..topology_kit import ECHO, QUICK, Site, running_topology

DEADLINE_S = READY_S = 240.0
SCRAPE_S = 30.0
Figures = dict[tuple[str, ...], float]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture
def site(short_path: Path) -> Iterator[Site]:
    text = f"{QUICK}metrics: {{port: {free_port()}}}\n"
    with running_topology(short_path, text, {"echo": ECHO}, READY_S) as running:
        yield running


def scrape(site: Site) -> Figures:
    """Return every sample by its name and its labels' values."""
    assert site.topology.metrics is not None
    url = f"http://127.0.0.1:{site.topology.metrics.port}/metrics"
    with urllib.request.urlopen(url, timeout=SCRAPE_S) as answer:
        text = answer.read().decode()
    families = text_string_to_metric_families(text)
    samples = [sample for family in families for sample in family.samples]
    return {(each.name, *each.labels.values()): each.value for each in samples}


def finish_some(site: Site, **how: str) -> None:
    with Client(site.topology.path, **how) as client:
        client.submit(Task("t", "kinds.echo", {}), 4)
        assert [rollout.outcome for rollout in client.rollouts()] == ["completed"] * 4


def test_a_scrape_counts_what_was_done(site: Site) -> None:
    finish_some(site)
    found = scrape(site)
    assert found["rollmq_up",] == 1.0
    assert found["rollmq_rollouts_ended_total", "completed"] == 4.0
    for stage in ("init", "run", "eval"):
        assert found["rollmq_stage_done_total", stage] == 4.0
        assert found["rollmq_stage_duration_seconds_count", stage] == 4.0
    assert found["rollmq_commit_seconds_count",] >= 1.0
    assert found["rollmq_stage_slots", "run"] == 4.0
    assert ("rollmq_node_heard_seconds", "local", "metrics", "metrics") in found


def test_it_listens_on_loopback_alone(site: Site) -> None:
    assert site.topology.metrics is not None
    listening = Path("/proc/net/tcp").read_text().splitlines()[1:]
    ours = f":{site.topology.metrics.port:04X}"
    addresses = {line.split()[1] for line in listening if line.split()[3] == "0A"}
    assert [each for each in addresses if each.endswith(ours)] == [f"0100007F{ours}"]


def test_a_broker_that_is_away_is_a_figure_and_comes_back(site: Site) -> None:
    broker = site.supervisor.pids["broker"]
    os.kill(broker, signal.SIGSTOP)
    assert scrape(site) == {("rollmq_up",): 0.0}
    os.kill(broker, signal.SIGKILL)
    site.until(lambda: scrape(site).get(("rollmq_up",)) == 1.0, DEADLINE_S)


def test_under_keys_it_asks_with_its_host_s_key(short_path: Path) -> None:
    text = f"{KEYED}metrics: {{{{port: {free_port()}}}}}\n"
    with keyed(short_path, text) as running:
        running.works(4)
        found = scrape(running.site)
        assert found["rollmq_up",] == 1.0
        assert found["rollmq_rollouts_ended_total", "completed"] == 4.0
        assert not [name for name in running.status()["loop"] if name.startswith("denied")]
