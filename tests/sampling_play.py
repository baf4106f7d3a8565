"""What a test of samplings over real processes plays with: prompts, gates, and what has run.

The prompts are of the kind `chaoskinds.scored`. A `Play` has a folder of its own in which the
executions of its prompts are noted, so that tests may share a topology.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

from engine import Batch, Client, Task

from .chaos.chaoskinds.executions import executions
from .chaos.scene import Scene, until

INFORMATIVE = (1, 0)
UNIFORM = (1,)
Names = set[tuple[int, int]]  # (prompt, member)


class Play:
    """One test's prompts and gates."""

    def __init__(self, scene: Scene, folder: Path) -> None:
        self.scene = scene
        self.folder = folder
        self.counts = folder / "executions"

    def gate(self, name: str) -> Path:
        return self.folder / name

    def prompt(
        self, gate: str = "", rewards: tuple[float, ...] = INFORMATIVE, **payload: Any
    ) -> Task:
        if gate:
            payload["gate"] = str(self.gate(gate))
        payload |= {"rewards": rewards, "counts": str(self.counts)}
        return Task(f"task-{gate}", "chaoskinds.scored", payload)

    def prompts(self, *first: Task, **payload: Any) -> Iterator[Task]:
        """Return these prompts, then more of which each is as the payload says, for ever."""
        yield from first
        for _ in count():
            yield self.prompt(**payload)

    def begun(self) -> Names:
        return {names(each) for stage, each in executions(self.counts) if stage == "run"}

    def left(self) -> Names:
        """Return the rollouts whose handlers were cancelled."""
        return {names(each) for stage, each in executions(self.counts) if stage == "left"}

    def attempts(self) -> list[int]:
        """Return how often each rollout ran."""
        found = executions(self.counts).items()
        return [len(attempts) for (stage, _), attempts in found if stage == "run"]

    def until_begun(self, wanted: Names) -> None:
        until(lambda: self.begun() >= wanted, f"{sorted(wanted)} to begin")

    def until_left(self, wanted: Names) -> None:
        until(lambda: self.left() >= wanted, f"{sorted(wanted)} to be stopped")

    def sampling(self, client: Client) -> dict[str, Any]:
        """Return the state of a client's only sampling; empty if there is none."""
        found = client.status()["samplings"]
        mine: list[dict[str, Any]] = [s for s in found if s["client_id"] == client.client_id]
        return mine[0] if mine else {}

    def until_settled(self, client: Client) -> None:
        """Wait until the broker owes this client nothing, and has no sampling of its."""

        def is_settled() -> bool:
            owed = {each["client_id"]: each["unacked"] for each in client.status()["clients"]}
            return not owed.get(client.client_id) and not self.sampling(client)

        until(is_settled, "the broker to owe nothing")


def names(rollout_id: str) -> tuple[int, int]:
    """Return the prompt and member of a sampling's rollout."""
    _, prompt, member = rollout_id.rsplit("-", 2)
    return int(prompt), int(member)


def of(prompts: tuple[int, ...], size: int = 2) -> Names:
    """Return the rollouts of prompts."""
    return {(prompt, member) for prompt in prompts for member in range(size)}


def prompts_in(batch: Batch) -> set[int]:
    return {rollout.prompt for group in batch.groups for rollout in group}


def members_in(batch: Batch) -> Names:
    return {names(rollout.rollout_id) for group in batch.groups for rollout in group}


@contextmanager
def meanwhile(action: Callable[[], None]) -> Iterator[None]:
    """Run something on another thread while the block runs; raise what it raised."""
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(action)
        yield
        running.result()
