"""Measure how many rows and bodies a second become durable, and how long one commit takes.

`content files` is the reference: each body a file named by its SHA-256, fdatasynced, one directory
fsync and one database commit for a batch. `segments` is engine.journal. Both have at most WINDOW
bodies of BODY_BYTES under way. `segments, recycled` forgets each body as soon as it is durable, as
a broker in its steady state does.

The latency cases append RATE rows a second, every tenth with a body, from a thread that is idle
otherwise, or always busy: WORK turns of a Python loop, then one message over inproc, which gives
up the interpreter's lock as the broker's sockets do. `apart` lets commits begin up to 5 ms apart,
the further the more there is to do, as the broker has it; the others begin as soon as they can.

Not measured: sockets between processes, a disk that other writers use, power loss.

    python -m bench.journal --seconds 3 --rounds 3 --json
"""

import argparse
import hashlib
import os
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter

import zmq
from isal.isal_zlib import crc32

from bench.measure import interleave, json_line, percentile, table
from engine.journal import Durability, Journal
from engine.journal.store import Append, Batch, Store

BODY_BYTES = 74_000  # tokens, mask and log-probabilities of a trajectory of 8,000 tokens
HEADER = b'{"rollout_id": "%s"}' % (b"r" * 200)
WINDOW = 64
ROW_WINDOW = 1024
RATE = 2000
WORK = 1500


@dataclass(frozen=True, slots=True)
class Result:
    """One case in one window; latency is from append until the broker's thread sees it durable."""

    name: str
    per_s: float
    p50_ms: float
    p99_ms: float
    max_ms: float


def result(name: str, latencies_s: list[float], seconds: float) -> Result:
    """Sum up one window."""
    return Result(
        name,
        len(latencies_s) / seconds,
        percentile(latencies_s, 50) * 1e3,
        percentile(latencies_s, 99) * 1e3,
        max(latencies_s) * 1e3,
    )


def content_files(directory: Path, seconds: float) -> Result:
    """Write batches of WINDOW content-addressed bodies, then their rows."""
    store = Store(directory / "rows.db", power_safe=True)
    bodies = directory / "files"
    bodies.mkdir()
    latencies: list[float] = []
    began, position = perf_counter(), 0
    while perf_counter() - began < seconds:
        batch_began, batch = perf_counter(), Batch()
        for _ in range(WINDOW):
            position += 1
            batch.last = position
            _write_content(bodies, _body(position))
            batch.appends[position] = [Append(position, position, "body", HEADER, None, [])]
        _sync(bodies)
        store.commit(batch)
        latencies += [perf_counter() - batch_began] * WINDOW
    took_s = perf_counter() - began
    store.close()
    return result("content files", latencies, took_s)


def _write_content(directory: Path, body: bytes) -> None:
    path = directory / hashlib.sha256(body).hexdigest()
    file = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    os.write(file, body)
    os.fdatasync(file)
    os.close(file)


def _sync(directory: Path) -> None:
    file = os.open(directory, os.O_RDONLY)
    os.fsync(file)
    os.close(file)


def _body(number: int) -> bytes:
    return number.to_bytes(8, "little") * (BODY_BYTES // 8)


class Driver:
    """Appends to a journal and notes when each append is seen durable."""

    def __init__(self, directory: Path, durability: Durability, *, wait_s: float = 0.0) -> None:
        self.woken = threading.Event()
        self.journal = Journal(directory, durability, commit_s=wait_s, wake=self.woken.set)
        self.latencies: list[float] = []
        self.order = 0
        self._under_way: deque[tuple[int, int, float]] = deque()

    def append(self, body: list[bytes]) -> None:
        """Append one entry of an order of its own."""
        self.order += 1
        began = perf_counter()
        position, _ = self.journal.append(self.order, "body", HEADER, body)
        self._under_way.append((position, self.order, began))

    def collect(self) -> list[int]:
        """Return the orders that have become durable."""
        durable, now, orders = self.journal.durable, perf_counter(), []
        while self._under_way and self._under_way[0][0] <= durable:
            _, order, began = self._under_way.popleft()
            self.latencies.append(now - began)
            orders.append(order)
        return orders

    def wait(self, left: int) -> list[int]:
        """Return the orders that have become durable once at most `left` are under way."""
        orders = self.collect()
        while len(self._under_way) > left:
            self.woken.wait()
            self.woken.clear()
            orders += self.collect()
        return orders


@contextmanager
def driving(directory: Path, durability: Durability, *, wait_s: float = 0.0) -> Iterator[Driver]:
    """Open a journal to measure, and close it."""
    driver = Driver(directory / "journal", durability, wait_s=wait_s)
    try:
        yield driver
    finally:
        driver.journal.close(60)


def flood(
    name: str, durability: Durability, *, with_bodies: bool, recycle: bool = False
) -> Callable[[Path, float], Result]:
    """Keep a fixed number of entries under way."""
    window = WINDOW if with_bodies else ROW_WINDOW

    def run(directory: Path, seconds: float) -> Result:
        with driving(directory, durability) as driver:
            began = perf_counter()
            while perf_counter() - began < seconds:
                driver.append([_body(driver.order)] if with_bodies else [])
                done = driver.wait(window - 1)
                if recycle and done:
                    driver.journal.forget(done)
            driver.wait(0)
            return result(name, driver.latencies, perf_counter() - began)

    return run


def steady(
    name: str,
    durability: Durability,
    *,
    is_busy: bool,
    wait_s: float = 0.0,
) -> Callable[[Path, float], Result]:
    """Append RATE rows a second, every tenth with a body, and forget them once durable."""

    def run(directory: Path, seconds: float) -> Result:
        with driving(directory, durability, wait_s=wait_s) as driver, echo() as exchange:
            began = perf_counter()
            while (now := perf_counter() - began) < seconds:
                while driver.order < now * RATE:
                    driver.append([] if driver.order % 10 else [_body(driver.order)])
                _pass_time(driver, exchange if is_busy else None)
                done = driver.collect()
                if done:
                    driver.journal.forget(done)
            driver.wait(0)
            return result(name, driver.latencies, perf_counter() - began)

    return run


def _pass_time(driver: Driver, exchange: Callable[[], None] | None) -> None:
    if exchange is None:
        driver.woken.wait(1 / RATE)
        driver.woken.clear()
        return
    for _ in range(WORK):
        pass
    exchange()


@contextmanager
def echo() -> Iterator[Callable[[], None]]:
    """Yield a function that sends one message to this thread itself."""
    with (
        zmq.Context() as context,
        context.socket(zmq.PUSH) as out,
        context.socket(zmq.PULL) as into,
    ):
        out.bind("inproc://bench")
        into.connect("inproc://bench")

        def exchange() -> None:
            out.send(b"message")
            into.recv()

        yield exchange


BODIES = {
    "content files": content_files,
    "segments": flood("segments", "power", with_bodies=True),
    "segments, recycled": flood("segments, recycled", "power", with_bodies=True, recycle=True),
    "segments, process": flood("segments, process", "process", with_bodies=True, recycle=True),
}
ROWS = {
    "rows, power": flood("rows, power", "power", with_bodies=False),
    "rows, process": flood("rows, process", "process", with_bodies=False),
}
LATENCY = {
    name: steady(name, "power", is_busy=is_busy, wait_s=wait_s)
    for name, is_busy, wait_s in (
        ("idle", False, 0.0),
        ("idle, apart", False, 0.005),
        ("busy", True, 0.0),
        ("busy, apart", True, 0.005),
    )
}


def checksums_us() -> dict[str, float]:
    """Return what naming one body costs, and what checking it costs."""
    body, found = os.urandom(BODY_BYTES), {}
    for name, compute in (
        ("sha256", lambda: hashlib.sha256(body)),
        ("crc32", lambda: crc32(body)),
    ):
        began = perf_counter()
        for _ in range(1000):
            compute()
        found[name] = (perf_counter() - began) * 1e3
    return found


def measure(seconds: float, rounds: int, parent: Path | None) -> dict[str, list[Result]]:
    """Run every case in alternation within its group, each on a fresh directory."""

    def fresh(case: Callable[[Path, float], Result]) -> Callable[[float], Result]:
        def run(seconds: float) -> Result:
            with tempfile.TemporaryDirectory(dir=parent) as directory:
                return case(Path(directory), seconds)

        return run

    groups = {"bodies": BODIES, "rows": ROWS, "latency": LATENCY}
    return {
        group: list(
            interleave(
                {name: fresh(case) for name, case in cases.items()},
                seconds,
                rounds,
                key=lambda run: run.per_s if group != "latency" else run.p99_ms,
            ).values()
        )
        for group, cases in groups.items()
    }


def main() -> None:
    """Measure from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--directory", type=Path, help="a directory on the disk to measure")
    parser.add_argument("--json", action="store_true", help="one line of JSON besides the tables")
    arguments = parser.parse_args()
    groups = measure(arguments.seconds, arguments.rounds, arguments.directory)
    checksums = checksums_us()
    for group, results in groups.items():
        headings = [group, "per s", "p50 ms", "p99 ms", "max ms"]
        print(table(headings, [list(asdict(each).values()) for each in results]), end="\n\n")
    print(table(["one body", "us"], checksums.items()))
    if arguments.json:
        print(json_line({"bench": "journal", **groups, "checksums_us": checksums}))


if __name__ == "__main__":
    main()
