"""Thousands of schedules of samplings. `ROLLMQ_SEEDS=n` sets how many, `ROLLMQ_SEED=n` runs one."""

import os
import re
from collections import Counter
from random import Random
from typing import Any

import pytest

from engine.ledger import Tick
from engine.sampling import Spec

from .sampling_trainer import Trainer
from .sampling_world import World

NAME = re.compile(r"[0-9a-f]{32}")  # a submit's, new each time
CHUNKS = 20
STORM_STEPS = 700
CALM_ROUNDS = 600
LAST_CRASH = 30  # of the rounds in which everybody behaves
SEEDS = int(os.environ.get("ROLLMQ_SEEDS", "300"))
ONE = os.environ.get("ROLLMQ_SEED")


def storm(world: World) -> None:
    """Do one thing of all that may happen."""
    rng, bad = world.rng, world.badness
    trainer = rng.choice(list(world.trainers.values()))
    worker = rng.choice(world.workers)
    actions: list[tuple[Any, float]] = [
        (trainer.turn, 20),
        (trainer.send, 25),
        (trainer.receive, 25),
        (trainer.work, 10),
        (trainer.close, 1),
        (lambda: world.beat(worker), 3),
        (lambda: world.commit(rng.randint(1, 9)), 15),
        (world.commit_all, 5),
        (lambda: _pass(world, rng.choice([0.1, 0.5, 2.5])), 2),
        (world.publish, bad["weights"]),
        (trainer.come_late, bad["trainer"]),
        (trainer.reconnect, bad["trainer"] / 4),
        (trainer.start, bad["trainer"] / 4),
        (trainer.reopen, bad["trainer"] / 4),
        (trainer.walk_away, bad["trainer"] / 40),
        (world.crash, bad["broker"]),
        (lambda: world.kill(worker), bad["worker"]),
        (lambda: trainer.cancel(everything=False), bad["user"]),
        (lambda: trainer.cancel(everything=True), bad["user"] / 20),
    ]
    if worker.held:
        actions.append((lambda: world.finish(worker, rng.choice(list(worker.held))), 30))
    ((do, _),) = rng.choices(actions, [weight for _, weight in actions])
    do()


def _pass(world: World, seconds: float) -> None:
    world.now += seconds
    world.handle(Tick())


def calm(world: World) -> None:
    """One round in which everybody does what is expected."""
    for trainer in world.trainers.values():
        trainer.turn()
        while trainer.to_broker:
            trainer.send()
        world.commit_all()
        while trainer.to_trainer:
            trainer.receive()
        trainer.work()
        trainer.close()
    for worker in world.workers:
        world.beat(worker)
        for key in list(worker.held):
            world.commit_all()
            world.finish(worker, key)
        world.commit_all()
    _pass(world, 0.6)
    world.commit_all()


def run(world: World) -> None:
    """Let it storm, then be calm until every sampling is closed and nothing is held."""
    world.open()
    for _ in range(STORM_STEPS):
        storm(world)
    world.is_calm = True
    for number in range(CALM_ROUNDS):
        if number < LAST_CRASH and world.rng.random() < world.badness["broker"] / 4:
            world.crash()
        calm(world)
        books = world.ledger._books
        over = all(trainer.is_over() for trainer in world.trainers.values())
        if over and not books.held_rollouts:
            break
    left = [trainer.client_id for trainer in world.trainers.values() if not trainer.is_over()]
    assert not left, f"{left} never come to their last batch: {world.ledger.status(world.now)}"
    assert not books.held_rollouts, f"{books.held_rollouts} rollouts are held for nothing"
    assert not books.samplings


def spec(rng: Random) -> Spec:
    size = rng.randint(2, 4)
    over: Any = rng.choice(["cancel", "carry"])
    staleness: Any = rng.choice(["none", "pace", "drop", "refill", "withhold"])
    return Spec(
        groups=rng.randint(1, 3),
        group_size=size,
        keep=rng.choice(["dapo", "dapo", "all"]),
        over=over,
        ahead=rng.choice([0, 0, 1, 2]),
        members=rng.choice([0, size - 1]),
        staleness=staleness,
        bound=rng.choice([0, 1, 2]),
        stop_early=rng.random() < 0.5,
        margin=rng.choice([0.0, 0.0, 1.0, 1.5]),
        in_flight=rng.choice([0, 0, 1, 6]),
    )


def schedule(seed: int) -> World:
    world = World(seed)
    for name in ("one", "two")[: world.rng.choice([1, 1, 2])]:
        Trainer(world, name, spec(world.rng))
    try:
        run(world)
    except Exception as error:  # noqa: BLE001 - whatever it is, the seed is what helps
        steps = "\n".join(world.trace)
        again = f"ROLLMQ_SEED={seed} python -m pytest tests/property/test_sampling_simulation.py"
        specs = [trainer.spec for trainer in world.trainers.values()]
        why = f"{type(error).__name__}: {error}"
        pytest.fail(f"{steps}\n{specs}\n{why}\nagain: {again}", pytrace=False)
    return world


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_every_sampling_comes_to_its_last_batch_whatever_the_schedule(chunk: int) -> None:
    for seed in range(chunk, SEEDS, CHUNKS) if ONE is None else [int(ONE)]:
        schedule(seed)


@pytest.mark.parametrize("seed", range(5))
def test_a_seed_is_one_schedule(seed: int) -> None:
    one, other = schedule(seed), schedule(seed)
    names = [[NAME.sub("", line) for line in world.trace] for world in (one, other)]
    assert names[0] == names[1]


def test_the_schedules_reach_every_verdict_and_reason() -> None:
    verdicts: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    for seed in range(60):
        for trainer in schedule(seed).trainers.values():
            verdicts.update(trainer.verdicts.values())
            reasons.update(batch.reason for batch in trainer.batches.values())
    assert {"dropped", "failed", "stale", "cancelled"} <= set(verdicts)
    assert {"complete", "ended", "failed", "blocked", "cancelled"} <= set(reasons)
