"""What pooled stages are worth when evaluations are slow.

    python -m bench.stages --json [--seconds 20]

The same rollouts in two ways on this machine: rollmq with a pool of slots for each stage, and one
process that takes each rollout through init, run and eval in turn, with as many rollouts at once as
the run stage has slots (places where a GPU or a sandbox is held). Stages only wait: init 50 ms, run
200 ms, eval 800 ms, each spread by a factor of two up and down, by a seed. So what is compared is
how long places are held, not how fast anything computes; the single process pays for no bus at all.

Measured: rollouts per second over a window after a warm-up. `ratio_single_process` is rollmq's
figure over the other's, medians of alternating rounds.
"""

import argparse
import asyncio
import itertools
import json
import os
import random
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from bench.bus import GROUP, ROOT
from bench.measure import (
    Meter,
    ReferenceResult,
    interleave,
    json_line,
    result_table,
    write_results,
)
from engine import Client, Task, load
from engine.supervisor import Supervisor
from nodes.tasks import Context, Output

MEANS_S = {"init": 0.05, "run": 0.2, "eval": 0.8}
SLOTS = {"init": 16, "run": 16, "eval": 64}
IN_FLIGHT = 96
ROUNDS = 3
WARMUP_S = 4.0


def wait_s(stage: str, number: int) -> float:
    """Return how long a stage of a rollout takes: half to twice the mean, by the number alone."""
    chance = random.Random(f"{stage}-{number}")
    return MEANS_S[stage] * 2 ** chance.uniform(-1, 1)


async def _stage(context: Context) -> Output:
    await asyncio.sleep(wait_s(context.stage, context.task.payload["number"]))
    return Output(reward=1.0 if context.stage == "eval" else None)


init = run = eval = _stage  # noqa: A001 - named as the stages


def pooled(seconds: float) -> ReferenceResult:
    """Measure rollmq with a pool for each stage."""
    stages = [{"name": name, "slots": slots} for name, slots in SLOTS.items()]
    settings = {"version": 1, "run_dir": "r", "log_level": "warning", "stages": stages}
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    started: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="rq") as folder:
        path = Path(folder) / "t.yaml"
        path.write_text(json.dumps(settings), encoding="utf-8")
        with Supervisor(load(path)) as supervisor, Client(path, window=1024) as client:
            supervisor.wait_ready(60)
            meter = Meter("pooled stages", seconds, warmup_s=WARMUP_S)
            going = True

            def tasks() -> Iterator[Task]:
                for number in itertools.count():
                    if not going:
                        return
                    started[str(number)] = time.perf_counter()
                    yield Task(str(number), "bench.stages", {"number": number})

            for rollout in client.run(tasks(), GROUP, in_flight=IN_FLIGHT):
                assert rollout.reward == 1.0, rollout
                going = meter.finished(started[rollout.task_id]) and going
    return meter.result()


def single(seconds: float) -> ReferenceResult:
    """Measure one process in which a place is held from init to the end of eval."""

    async def measure() -> ReferenceResult:
        meter = Meter("one process", seconds, warmup_s=WARMUP_S)
        numbers = itertools.count()

        async def place() -> None:
            going = True
            while going:
                number, began = next(numbers) // GROUP, time.perf_counter()
                for stage in MEANS_S:
                    await asyncio.sleep(wait_s(stage, number))
                going = meter.finished(began)

        await asyncio.gather(*(place() for _ in range(SLOTS["run"])))
        return meter.result()

    return asyncio.run(measure())


def main() -> None:
    """Print a table, and with --json one line at the end."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = interleave({"pooled": pooled, "single": single}, options.seconds, ROUNDS)
    print(result_table(found.values()))
    rates = {name: result.rollouts_per_s for name, result in found.items()}
    values = {"ratio_single_process": rates["pooled"] / rates["single"], **rates, "slots": SLOTS}
    write_results("stages", values)
    if options.json:
        print(json_line(values))


if __name__ == "__main__":
    main()
