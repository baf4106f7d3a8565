"""What one rollout costs the ledger alone, and how that grows with workers and hosts.

    python -m bench.ledger --json

The ledger is driven as a broker drives it, without sockets, disk or clock: three stages, a worker
of each on every host, results taken some dozen at a time and placed together, every delivered
result acknowledged. As many rollouts as there are slots, and half as many more, are under way.

Measured: processor time of the whole ledger for one rollout, in microseconds, the least of several
rounds: what disturbs only adds. `us_1` to `us_256` are for so many hosts of three workers each;
`growth` is the last over the first. Not measured: what the broker does around it.
"""

import argparse
import time
from collections import deque

from bench.measure import json_line, table, write_results
from engine.ledger import (
    Deliver,
    Dispatch,
    FromTrainer,
    FromWorker,
    Instruction,
    Ledger,
    Rules,
    StageRule,
    Tick,
)
from engine.messages import Ack, Hello, StageResult, Submit, WorkerHello
from engine.records import Buffer, Usage

HOSTS = (1, 4, 16, 64, 256)
STAGES = ("init", "run", "eval")
SLOTS = 2048  # of each stage, over all hosts
TOGETHER = 32  # results in a turn of the broker
GROUP = 8
TASK = (Buffer("task", "json", (200,)),)
CLIENT = "trainer"
TICK_S, TURN_S = 0.25, 0.003
FOREVER_S = 1e9


class Play:
    """A ledger, and the trainer and workers that it talks with."""

    def __init__(self, hosts: int) -> None:
        slots = SLOTS // hosts
        self.ledger = Ledger(_rules(slots), "broker-1")
        self.now = 0.0
        self.ended = 0
        self._groups = 0
        self._given: deque[Dispatch] = deque()
        self._ticked = 0.0
        self._take(FromTrainer(CLIENT, Hello(CLIENT, 4096)))
        for host in range(hosts):
            for stage in STAGES:
                name = f"{stage}-{host}"
                hello = WorkerHello(name, name, f"host-{host}", stage, slots, 1 << 30, ())
                self._take(FromWorker(hello))
        self._refill()

    def run(self, rollouts: int) -> float:
        """Let so many rollouts end; return the processor time of each in microseconds."""
        until, began = self.ended + rollouts, time.process_time()
        while self.ended < until:
            self._turn()
        return (time.process_time() - began) / rollouts * 1e6

    def _turn(self) -> None:
        self.now += TURN_S
        for _ in range(min(TOGETHER, len(self._given))):
            work = self._given.popleft()
            last = work.stage == len(STAGES) - 1
            result = StageResult(
                work.worker_id,
                work.rollout_id,
                STAGES[work.stage],
                work.attempt,
                "done",
                0.5,
                reward=1.0 if last else None,
                usage=Usage(),
            )
            self._take(FromWorker(result, 100), place=False)
        self._sort(self.ledger.place(self.now))
        if self.now - self._ticked > TICK_S:
            self._ticked = self.now
            self._take(Tick())

    def _refill(self) -> None:
        while self._groups * GROUP < self.ended + 3 * SLOTS // 2:
            self._groups += 1
            name = f"g{self._groups}"
            names = tuple(f"{name}-{member}" for member in range(GROUP))
            submit = Submit(f"s-{name}", name, "task", "math", names, TASK)
            self._take(FromTrainer(CLIENT, submit, 200))

    def _take(self, event: FromTrainer | FromWorker | Tick, *, place: bool = True) -> None:
        self._sort(self.ledger.handle(event, self.now, place=place))

    def _sort(self, instructions: list[Instruction]) -> None:
        delivered = []
        for instruction in instructions:
            if isinstance(instruction, Dispatch):
                self._given.append(instruction)
            elif isinstance(instruction, Deliver):
                delivered.append(instruction.result.seq)
        if delivered:
            self.ended += len(delivered)
            self._take(FromTrainer(CLIENT, Ack(((delivered[0], delivered[-1]),), 4096)))
            self._refill()


def _rules(slots: int) -> Rules:
    return Rules(
        stages=tuple(StageRule(name, 3, slots) for name in STAGES),
        heartbeat_s=2.0,
        lease_s=FOREVER_S,
        retry_delay_s=0.5,
        retention_s=1.0,
        rollouts=100_000,
        bytes=1 << 34,
        message_bytes=1 << 26,
        group=1024,
        client_window=4096,
        client_bytes=1 << 34,
    )


def measure(rounds: int, rollouts: int) -> dict[int, float]:
    """Return microseconds a rollout for each number of hosts, the least of alternating rounds."""
    plays = {hosts: Play(hosts) for hosts in HOSTS}
    for play in plays.values():
        play.run(SLOTS)  # warm-up: every slot was used once
    found: dict[int, list[float]] = {hosts: [] for hosts in HOSTS}
    for _ in range(rounds):
        for hosts, play in plays.items():
            found[hosts].append(play.run(rollouts))
    return {hosts: min(costs) for hosts, costs in found.items()}


def main() -> None:
    """Print a table, and with --json one line at the end."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rollouts", type=int, default=4000, help="in each round")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = measure(options.rounds, options.rollouts)
    print(table(["hosts", "workers", "us a rollout"], [(n, 3 * n, us) for n, us in found.items()]))
    values = {f"us_{hosts}": us for hosts, us in found.items()}
    values["growth"] = found[HOSTS[-1]] / found[HOSTS[0]]
    write_results("ledger", values)
    if options.json:
        print(json_line(values))


if __name__ == "__main__":
    main()
