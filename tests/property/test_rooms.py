"""Lines of workers with room, against the rule that they stand for: look at every worker."""

from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from engine.ledger.rollouts import LedgerRollout, LedgerWorker, Submission
from engine.ledger.rooms import ANY, Rooms

HOSTS = ("a", "b", "c")
SIZES = (0, 1, 30, 100, 300)
SUBMISSION = Submission(1, "client", "group", "task", "math", 0, 1, 0)


def by_looking_at_all(
    workers: dict[str, LedgerWorker], host: str, size: int, avoid: str, closed: set[str]
) -> LedgerWorker | None:
    able = [
        worker
        for worker in workers.values()
        if worker.has_room(size) and host in {ANY, worker.host} and worker.host not in closed
    ]
    return min(
        able,
        key=lambda w: (w.worker_id == avoid, len(w.leases) / w.slots, w.used_at, w.worker_id),
        default=None,
    )


def change(chance: Random, rooms: Rooms, workers: dict[str, LedgerWorker], now: float) -> None:
    """Let something happen to a worker that the ledger may let happen."""
    name = f"w{chance.randrange(8)}"
    worker = workers.get(name)
    if worker is None:
        host, slots = chance.choice(HOSTS), chance.randrange(4)
        worker = workers[name] = LedgerWorker(name, name, host, 0, slots, 200, now)
    elif chance.random() < 0.1:
        rooms.gone(workers.pop(name))
        return
    match chance.randrange(6):
        case 0 | 1:
            rollout = LedgerRollout(1, f"r{now}", SUBMISSION, now, now)
            worker.leases[rollout.rollout_id] = rollout
            worker.used_bytes += chance.choice(SIZES)
            worker.used_at = now
        case 2 if worker.leases:
            del worker.leases[chance.choice(list(worker.leases))]
            worker.used_bytes = worker.used_bytes // 2 if worker.leases else 0
        case 3:
            worker.slots = chance.randrange(5)
        case 4:
            worker.silent = not worker.silent
        case _:
            worker.reserved = not worker.reserved
    rooms.changed(worker)


@settings(max_examples=150)
@given(st.integers(0, 2**32))
def test_the_first_in_line_is_the_one_that_a_look_at_all_workers_finds(seed: int) -> None:
    chance, rooms = Random(seed), Rooms()
    workers: dict[str, LedgerWorker] = {}
    for step in range(60):
        change(chance, rooms, workers, float(step))
        assert rooms.faults(workers.values()) == []
        closed = {host for host in HOSTS if chance.random() < 0.3}
        asked = (chance.choice((ANY, *HOSTS)), chance.choice(SIZES), f"w{chance.randrange(8)}")
        found = rooms.best(0, *asked, lambda host, closed=closed: host not in closed)
        assert found is by_looking_at_all(workers, *asked, closed)


def test_a_worker_that_changed_unnoticed_is_a_fault() -> None:
    rooms = Rooms()
    worker = LedgerWorker("w", "w", "a", 0, 2, 200, 0.0)
    rooms.changed(worker)
    assert rooms.best(0, "a", 0, "", lambda _: True) is worker
    worker.silent = True
    assert rooms.faults([worker]) == ["w stands elsewhere than its load says"]
    assert rooms.faults([]) == ["w is gone"]
