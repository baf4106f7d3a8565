"""A stage that a user adds: an entry in topology.yaml and a function, and nothing of the engine."""

from pathlib import Path

from engine import Client, Rollout, Task

from ..topology_kit import running_topology

TOPOLOGY = """\
version: 1
durability: process
timeouts: {{heartbeat_s: 0.3, drain_s: 2, retry_delay_s: 0.1}}
stages:
  - name: init
  - name: run
  - {{name: filter, slots: 8, timeout_s: 5, attempts: 2{handler}}}
  - name: eval
"""

DRAWING = """\
from nodes.tasks import Output


async def init(context):
    return Output()


async def run(context):
    return Output(data={"drawn": context.task.payload["number"]})


async def eval(context):
    return Output(reward=1.0, data={"seen": context.data["filter"]["by"]})
"""

SIFT = """\
from nodes.tasks import Output


def keep_even(context):
    by = f"{context.stage} of sift"
    if context.data["run"]["drawn"] % 2:
        return Output(data={"by": by}, reward=-1.0, final=True)
    return Output(data={"by": by})
"""

OWN_FILTER = """\

async def filter(context):
    if context.data["run"]["drawn"] == 3 and context.attempt == 3:  # after init and run
        raise OSError("once")
    return Output(data={"by": "the kind"})
"""

KINDS = {"drawing": DRAWING, "sorting": DRAWING + OWN_FILTER, "sift": SIFT}


def run(directory: Path, handler: str, kind: str) -> dict[str, Rollout]:
    text = TOPOLOGY.format(handler=handler and f", handler: {handler!r}")
    with (
        running_topology(directory, text, KINDS) as site,
        Client(site.topology.path, "trainer") as client,
    ):
        tasks = (Task(str(number), f"kinds.{kind}", {"number": number}) for number in range(4))
        return {rollout.task_id: rollout for rollout in client.run(tasks)}


def stages(rollout: Rollout) -> list[str]:
    return [timing.stage for timing in rollout.timings]


def test_a_function_named_in_the_topology_does_its_stage_for_every_kind(short_path: Path) -> None:
    found = run(short_path, "kinds.sift:keep_even", "drawing")
    assert {name: rollout.reward for name, rollout in found.items()} == {
        "0": 1.0,
        "1": -1.0,
        "2": 1.0,
        "3": -1.0,
    }
    assert {rollout.outcome for rollout in found.values()} == {"completed"}
    assert stages(found["0"]) == ["init", "run", "filter", "eval"]
    assert stages(found["1"]) == ["init", "run", "filter"]
    assert found["0"].data["eval"] == {"seen": "filter of sift"}


def test_a_kinds_own_function_does_the_stage_of_its_name(short_path: Path) -> None:
    found = run(short_path, "", "sorting")
    assert {rollout.reward for rollout in found.values()} == {1.0}
    for rollout in found.values():
        assert stages(rollout) == ["init", "run", "filter", "eval"]
        assert rollout.data["eval"] == {"seen": "the kind"}
    assert [(failure.stage, failure.error) for failure in found["3"].failures] == [
        ("filter", "OSError")
    ]


def test_a_kind_without_the_stages_function_fails_and_names_it(short_path: Path) -> None:
    found = run(short_path, "", "drawing")
    for rollout in found.values():
        assert (rollout.outcome, rollout.reward) == ("failed", None)
        [failure] = rollout.failures
        assert (
            failure.message == "task kind 'kinds.drawing': kinds.drawing has no function 'filter'"
        )
