"""The systems that rollmq is compared with, each the best that we could write for its design.

All do the stages of `bench.workload` for one client with `in_flight` rollouts under way, check
every rollout that arrives, and offer `run(seconds, in_flight, tokens) -> ReferenceResult`. None of
them keeps, leases, repeats or acknowledges anything. Run one alone with
`python -m bench.references.<name> --seconds 5`.
"""

import argparse
from collections.abc import Callable
from dataclasses import asdict
from importlib import import_module

from bench.measure import ReferenceResult, json_line, result_table
from bench.workload import IN_FLIGHT, TOKENS

NAMES = (
    "raw_zmq",
    "fastapi_octets",
    "fastapi_tuned",
    "ray_actors",
    "fastapi_annotated",
    "fastapi_dicts",
)
Run = Callable[[float, int, int], ReferenceResult]


def load(name: str) -> Run:
    """Return the `run` of a reference; its own dependencies are imported only now.

    Raises:
        ImportError: a package of the extra `bench` is missing.

    """
    reference: Run = import_module(f"bench.references.{name}").run
    return reference


def main(run: Run) -> None:
    """Measure one reference from the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--in-flight", type=int, default=IN_FLIGHT)
    parser.add_argument("--tokens", type=int, default=TOKENS)
    arguments = parser.parse_args()
    result = run(arguments.seconds, arguments.in_flight, arguments.tokens)
    print(result_table([result]))
    print(json_line(asdict(result)))
