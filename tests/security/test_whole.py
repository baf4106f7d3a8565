"""A whole topology over CURVE does what it does over IPC."""

from pathlib import Path

from engine import Client, Task

from .kit import PATIENCE_S, keyed


def test_two_hundred_rollouts_over_curve(short_path: Path) -> None:
    with keyed(short_path) as keyed_site:
        with keyed_site.client(patience_s=PATIENCE_S) as client:
            for number in range(25):
                client.submit(Task(f"t-{number}", "kinds.echo", {"n": number}), 8)
            rollouts = list(client.rollouts())
        assert [rollout.outcome for rollout in rollouts] == ["completed"] * 200
        assert {rollout.reward for rollout in rollouts} == {1.0}
        status = keyed_site.status()
        assert status["security"]["refused"] == {}
        assert not [name for name in status["loop"] if name.startswith(("refused", "denied"))]
        hosts = {worker["host"] for worker in status["workers"]}
        assert hosts == {"here", "there"}
        with Client(keyed_site.topology.path, "t-2", key="t") as client:
            assert client.client_id == "t-2"
