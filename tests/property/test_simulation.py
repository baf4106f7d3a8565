"""Thousands of schedules. `ROLLMQ_SEEDS=n` sets how many, `ROLLMQ_SEED=n` runs one alone."""

import os
from collections import Counter
from random import Random

import pytest

from engine.ledger.books import ISOLATE_AFTER
from engine.messages import Cancel, Submit

from ..ledger_kit import buffers
from .actors import POISON, Node, Trainer
from .simulation import CALM_S, RULES, Broker, Weather, World

CHUNKS = 20
SEEDS = int(os.environ.get("ROLLMQ_SEEDS", "1500"))
ONE = os.environ.get("ROLLMQ_SEED")
STORMS = (
    Weather(loss=0.02, repeat=0.02, late=0.02, crashes=4),
    Weather(loss=0.1, repeat=0.1, late=0.1, crashes=2),
    Weather(crashes=10),
    Weather(late=0.3, crashes=3),
)


class Schedule:
    """One seed's world, and everything that goes wrong in it."""

    def __init__(self, seed: int, weather: Weather, poison: int) -> None:
        self.world = World(seed, weather)
        self.rng = Random(seed + 1)
        self.broker = Broker(self.world)
        self.nodes = [
            self._node(number, stage) for stage in ("init", "run", "eval") for number in range(2)
        ]
        self.trainers = [self._trainer(name, poison) for name in ("one", "two")]
        for actor in (*self.nodes, *self.trainers):
            self.world.after(self.rng.uniform(0.0, 1.0), actor.start)
        self._plan(weather)

    def run(self) -> None:
        """Run until everything has ended and been acknowledged, then look at what is left."""
        self.world.run(self._is_over)
        self.broker.ledger.validate()
        if not self.broker.crashed:
            kept = +self.broker.bodies
            assert not kept, f"bodies are kept for nothing: {kept}"

    def outcomes(self) -> Counter[str]:
        """Count how the rollouts ended."""
        results = [r for trainer in self.trainers for r in trainer.results.values()]
        return Counter(result.outcome for result in results)

    def _is_over(self) -> bool:
        held = sum(self.broker.ledger.unacked(trainer.client_id) for trainer in self.trainers)
        done = all(trainer.is_done for trainer in self.trainers)
        return self.broker.up and done and not held and not self.broker.gated

    def _node(self, number: int, stage: str) -> Node:
        host, slots = "ab"[number], self.rng.randint(1, 3)
        node = Node(self.world, self.broker, f"{stage}-{number}", host, stage, slots)
        self.broker.nodes[node.name] = node
        return node

    def _trainer(self, client_id: str, poison: int) -> Trainer:
        submits = []
        for number in range(self.rng.randint(1, 4)):
            size = self.rng.randint(1, 4)
            names = [f"{client_id}-{number}-{member}" for member in range(size)]
            if number < poison:
                names[-1] = f"{POISON}-{client_id}-{number}"
            submits.append(
                Submit(f"s{number}", f"g{number}", "t", "math", tuple(names), buffers(10))
            )
        trainer = Trainer(self.world, self.broker, client_id, submits, self.rng.randint(1, 4))
        self.broker.trainers[client_id] = trainer
        return trainer

    def _plan(self, weather: Weather) -> None:
        faults = (
            (self._crash_broker, 1.0),
            (self._kill_worker, 1.0),
            (self._pause_worker, 1.0),
            (self._lose_host, 0.3),
            (self._leave, 0.3),
            (self._close_pipe, 0.5),
            (self._break_connection, 1.0),
            (self._cancel_some, 1.0),
        )
        for _ in range(self.rng.randint(0, round(2 * weather.crashes))):
            (fault,) = self.rng.choices(*zip(*faults, strict=True))
            self.world.after(self.rng.uniform(0.0, CALM_S), fault)

    def _crash_broker(self) -> None:
        self.broker.crash()

    def _kill_worker(self) -> None:
        self.rng.choice(self.nodes).kill(self.rng.uniform(0.1, 4.0))

    def _pause_worker(self) -> None:
        node = self.rng.choice(self.nodes)
        node.paused_until = self.world.now + self.rng.choice([0.5, 1.4, 2.0, 6.0])
        self.world.note(f"{node.worker_id} stands still until {node.paused_until}")

    def _lose_host(self) -> None:
        host, down_s = self.rng.choice("ab"), self.rng.uniform(0.5, 8.0)
        for node in self.nodes:
            if node.host == host:
                node.lose_power(down_s)

    def _leave(self) -> None:
        self.rng.choice(self.nodes).leave()

    def _close_pipe(self) -> None:
        self.broker.close_pipe(self.rng.choice(self.nodes).worker_id)

    def _break_connection(self) -> None:
        trainer = self.rng.choice(self.trainers)
        if self.rng.random() < 0.5:
            trainer.crash()
        else:
            trainer.disconnect()

    def _cancel_some(self) -> None:
        trainer = self.rng.choice(self.trainers)
        submit = self.rng.choice(trainer.submits)
        if submit.submit_id not in trainer.accepted:
            return
        cancel_id = f"c{self.world.now}"
        what = self.rng.choice(
            [
                Cancel(cancel_id, (self.rng.choice(submit.rollout_ids),)),
                Cancel(cancel_id, group_ids=(submit.group_id,)),
                Cancel(cancel_id, everything=True),
            ]
        )
        trainer.cancel(what)


def run(seed: int, weather: Weather | None = None, poison: int | None = None) -> Schedule:
    rng = Random(seed)
    weather = weather or rng.choice(STORMS)
    schedule = Schedule(seed, weather, rng.choice([0, 0, 1]) if poison is None else poison)
    try:
        schedule.run()
    except Exception as error:  # noqa: BLE001 - whatever it is, the seed is what helps
        steps = "\n".join(f"{at:8.3f} {what}" for at, what in schedule.world.trace)
        again = f"ROLLMQ_SEED={seed} python -m pytest tests/property/test_simulation.py"
        pytest.fail(f"{steps}\n{type(error).__name__}: {error}\nagain: {again}", pytrace=False)
    return schedule


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_everything_ends_once_whatever_the_schedule(chunk: int) -> None:
    for seed in range(chunk, SEEDS, CHUNKS) if ONE is None else [int(ONE)]:
        run(seed)


@pytest.mark.parametrize("seed", range(20))
def test_a_seed_is_one_schedule(seed: int) -> None:
    assert list(run(seed).world.trace) == list(run(seed).world.trace)


@pytest.mark.parametrize("seed", range(20))
def test_poison_fails_and_everybody_else_completes(seed: int) -> None:
    for trainer in run(seed, Weather(), poison=1).trainers:
        for name, result in trainer.results.items():
            poisoned = name.startswith(POISON)
            kills = [failure for failure in result.failures if failure.stage == "run"]
            assert len(kills) <= RULES.stages[1].attempts + 2 * ISOLATE_AFTER, str(result)
            assert (result.outcome == "failed") == poisoned, f"{name}: {result}"


def test_the_schedules_reach_every_outcome_that_the_ledger_gives() -> None:
    found: Counter[str] = Counter()
    for seed in range(40):
        found += run(seed).outcomes()
    assert {"completed", "truncated", "failed", "cancelled"} <= set(found)
