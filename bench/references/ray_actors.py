"""Reference: Ray actors that pass object references, one actor a stage.

The driver is the client: it chains init, run and eval by reference, so a trajectory goes from the
run actor to the eval actor and to the driver without the driver's Python in between. Each actor
answers one caller in order, so the driver takes the oldest rollout instead of asking which is
ready; that is the cheapest way that Ray offers.
"""

import logging
import os
import tempfile
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench import workload
from bench.measure import Meter, ReferenceResult
from bench.references import main
from bench.workload import Trajectory

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
import ray

NAME = "ray_actors"
ANSWER_S = 60.0


class Init:
    def work(self, task_id: int) -> NDArray[np.int32]:
        return workload.init(task_id)


class Run:
    def __init__(self, tokens):
        self.tokens = tokens

    def work(self, prompt):
        t = workload.run(prompt, self.tokens)
        m = os.environ.get("M", "3")
        if m == "3":
            return t.token_ids, t.logprobs, t.loss_mask
        return np.frombuffer(workload.pack(t), np.uint8)


class Eval:
    def work(self, t):
        if isinstance(t, tuple):
            ids = t[0]
        else:
            ids = workload.unpack(t.data).token_ids
        r = workload.evaluate(int(ids[0]), int(ids[-1]))
        if os.environ.get("BOTH"):
            return t, r
        return r


def run(seconds: float, in_flight: int, tokens: int) -> ReferenceResult:
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as folder:
        ray.init(num_cpus=2, include_dashboard=False, _temp_dir=folder, logging_level=logging.ERROR, log_to_driver=True,
           runtime_env={"env_vars": {k: os.environ[k] for k in ("M", "BOTH", "PYTHONPATH") if k in os.environ}})
        try:
            A = [ray.remote(num_cpus=0)(c) for c in (Init, Run, Eval)]
            i, r, e = A[0].remote(), A[1].remote(tokens), A[2].remote()
            def submit(k):
                t = r.work.remote(i.work.remote(k))
                return k, perf_counter(), t, e.work.remote(t)
            def take(item):
                k, s, t, rw = item
                if os.environ.get("BOTH"):
                    t, rw = ray.get(rw)
                else:
                    t, rw = ray.get([t, rw])
                t = Trajectory(*t) if isinstance(t, tuple) else workload.unpack(t.data)
                workload.check(k, t, rw, tokens)
                return s
            take(submit(0))
            meter = Meter(NAME, seconds)
            q = deque(submit(k) for k in range(in_flight))
            n = in_flight
            while meter.finished(take(q.popleft())):
                q.append(submit(n)); n += 1
            return meter.result()
        finally:
            ray.shutdown()

if __name__ == "__main__":
    main(run)
