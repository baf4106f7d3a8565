"""Rollouts in the forms of TRL, verl and slime; the real classes are in tests/trainers."""

import ast
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from engine import ClientError, Rollout, Task
from engine.adapters import slime, trl, verl
from engine.adapters.rows import left_out, rows

from ..rollout_kit import failed, logprob, member

TURNS = ((0, (1, 2, 3)), (1, (4, 5)), (0, (6, 7)), (1, (8,)), (0, (9,)))
SPANS = ((3, 5, 2), (7, 8, 3))
TWO_SEGMENTS = ((0, (1,)), (1, (2, 3)), (0, (10, 11)), (1, (12,)))
EDGES = ((0, 3), (3, 6))


def test_a_response_goes_from_the_first_sampled_token_to_the_last() -> None:
    [row] = rows(member("r", pieces=TURNS, spans=SPANS))
    assert row.prompt_ids.tolist() == [1, 2, 3]
    assert row.response_ids.tolist() == [4, 5, 6, 7, 8]
    assert row.response_mask.tolist() == [1, 1, 0, 0, 1]
    assert row.logprobs.tolist() == [logprob(4), logprob(5), 0, 0, logprob(8)]
    assert row.versions == (2, 3)


def test_no_row_spans_two_segments() -> None:
    two = member("r", pieces=TWO_SEGMENTS, segments=EDGES, spans=((1, 3, 4), (5, 6, 5)))
    every = rows(two, "all")
    assert [each.prompt_ids.tolist() for each in every] == [[1], [10, 11]]
    assert [each.response_ids.tolist() for each in every] == [[2, 3], [12]]
    assert [each.versions for each in every] == [(4,), (5,)]
    [last] = rows(two)
    assert last.response_ids.tolist() == [12]


def test_a_segment_without_sampled_tokens_is_not_the_last() -> None:
    pieces = ((0, (1,)), (1, (2, 3)), (0, (10, 11)))
    [row] = rows(member("r", pieces=pieces, segments=((0, 3), (3, 5))))
    assert row.response_ids.tolist() == [2, 3]


@pytest.mark.parametrize(
    "lost",
    [
        failed("r"),
        failed("r", outcome="cancelled", failures=()),
        member("r", trainable=False, outcome="truncated"),
        member("r", reward=None),
        member("r", pieces=((0, (1, 2)),)),
        member("r", pieces=()),
    ],
)
def test_what_is_not_trainable_has_no_rows(lost: Rollout) -> None:
    assert rows(lost) == ()
    assert left_out([[member("a"), lost]]) == ("r",)


def test_a_sampled_token_without_a_prompt_is_refused() -> None:
    with pytest.raises(ValueError, match="rollout r: token 0 is sampled without a prompt"):
        rows(member("r", pieces=((1, (4, 5)),)))


def pair() -> list[list[Rollout]]:
    long = member("a-0", "a", TURNS, spans=SPANS, reward=0.5, rewards={"exact": 0.5})
    short = member("a-1", "a", outcome="agent_timeout", reward=0.0)
    other = [member("b-0", "b", reward=0.25), failed("b-1", "b")]
    return [[long, short], other]


def test_verl_pads_prompts_left_and_responses_right() -> None:
    found = verl.batch(pair(), prompt_length=4, response_length=6, pad_token_id=99).tensors
    assert found["prompts"].tolist() == [[99, 1, 2, 3], [99, 99, 1, 2], [99, 99, 1, 2]]
    assert found["responses"][0].tolist() == [4, 5, 6, 7, 8, 99]
    assert found["responses"][1].tolist() == [3, 4, 99, 99, 99, 99]
    assert found["response_mask"][0].tolist() == [1, 1, 0, 0, 1, 0]
    assert found["attention_mask"][0].tolist() == [0, 1, 1, 1, 1, 1, 1, 1, 1, 0]
    assert found["position_ids"][0].tolist() == [0, 0, 1, 2, 3, 4, 5, 6, 7, 7]
    assert found["input_ids"].tolist() == np.hstack([found["prompts"], found["responses"]]).tolist()
    assert found["rollout_log_probs"][1].tolist() == [logprob(3), logprob(4), 0, 0, 0, 0]
    assert found["rm_scores"].tolist()[0] == [0, 0, 0, 0, 0.5, 0]
    assert found["rm_scores"].sum(axis=1).tolist() == [0.5, 0.0, 0.25]


def test_verl_has_the_dtypes_that_its_documentation_names() -> None:
    found = verl.batch(pair()).tensors
    floats = {"rollout_log_probs", "rm_scores"}
    assert {name for name, array in found.items() if array.dtype == np.float32} == floats
    assert {name for name, array in found.items() if array.dtype == np.int64} == set(found) - floats


def test_verl_groups_by_uid_and_leaves_out_what_failed() -> None:
    made = verl.batch(pair())
    assert made.non_tensors["uid"].tolist() == ["a", "a", "b"]
    assert made.non_tensors["rollout_id"].tolist() == ["a-0", "a-1", "b-0"]
    assert made.non_tensors["__num_turns__"].tolist() == [4, 2, 2]
    assert made.non_tensors["min_global_steps"].tolist() == [2, None, None]
    assert made.non_tensors["max_global_steps"].tolist() == [3, None, None]
    assert made.meta_info == {"reward_extra_keys": ["exact"]}
    np.testing.assert_array_equal(made.non_tensors["exact"], [0.5, np.nan, np.nan])
    assert made.left_out == ("b-1",)
    assert {len(array) for array in (made.tensors | made.non_tensors).values()} == {3}


def test_verl_repeats_the_reward_on_every_segment_when_all_are_asked_for() -> None:
    two = member("r", pieces=TWO_SEGMENTS, segments=EDGES, reward=0.75)
    made = verl.batch([[two]], segments="all")
    assert made.tensors["rm_scores"].tolist() == [[0.0, 0.75], [0.75, 0.0]]
    assert made.non_tensors["uid"].tolist() == ["g", "g"]


def test_verl_refuses_what_is_too_long_and_cuts_responses_when_told() -> None:
    with pytest.raises(ValueError, match="a-0: a prompt of 3 tokens, prompt_length 2"):
        verl.batch(pair(), prompt_length=2)
    with pytest.raises(ValueError, match="a-0: a response of 5 tokens, response_length 3"):
        verl.batch(pair(), response_length=3)
    cut = verl.batch(pair(), response_length=3, cut=True).tensors
    assert cut["responses"][0].tolist() == [4, 5, 6]
    assert cut["rm_scores"][0].tolist() == [0, 0.5, 0]


def test_a_batch_of_failures_alone_is_an_error_and_not_an_empty_batch() -> None:
    lost = [[failed("a"), failed("b")]]
    with pytest.raises(ClientError, match=r"2 rollouts; a failed: SandboxError: the disk is full"):
        verl.batch(lost)
    with pytest.raises(ClientError, match=r"2 rollouts; a failed: SandboxError: the disk is full"):
        trl.columns(lost[0])


def test_slime_has_items_for_each_token_of_the_response() -> None:
    made = slime.samples(pair()[:1])
    [[long, short]] = made.groups
    assert long["tokens"] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert long["response_length"] == len(long["loss_mask"]) == len(long["rollout_log_probs"]) == 5
    assert long["loss_mask"] == [1, 1, 0, 0, 1]
    assert long["rollout_log_probs"] == [logprob(4), logprob(5), 0.0, 0.0, logprob(8)]
    assert (long["reward"], long["status"]) == (0.5, "completed")
    assert long["weight_versions"] == ["2", "3"]
    assert (short["reward"], short["status"]) == (0.0, "truncated")
    assert made.left_out == ()


def test_slime_gets_whole_groups_only() -> None:
    whole, torn = pair()
    unfinished = [member("c-0", "c")]
    made = slime.samples([torn, whole, unfinished])
    assert [each["metadata"]["rollout_id"] for each in made.groups[0]] == ["a-0", "a-1"]
    assert made.left_out == ("b", "c")
    assert [each["group_index"] for each in made.groups[0]] == [0, 0]


def test_slime_gives_segments_of_one_rollout_one_rollout_id() -> None:
    two = member("r-0", pieces=TWO_SEGMENTS, segments=EDGES)
    made = slime.samples([[two, member("r-1")]], segments="all", first_group=5, first_sample=10)
    assert [each["rollout_id"] for each in made.groups[0]] == [10, 10, 11]
    assert [each["index"] for each in made.groups[0]] == [10, 11, 12]
    assert {each["group_index"] for each in made.groups[0]} == {5}


def test_trl_gets_a_masked_row_without_a_reward_for_what_failed() -> None:
    found = trl.columns([*pair()[0], failed("x")])
    assert found["prompt_ids"] == [[1, 2, 3], [1, 2], [1]]
    assert found["completion_ids"] == [[4, 5, 6, 7, 8], [3, 4], [4]]
    assert found["env_mask"] == [[1, 1, 0, 0, 1], [1, 1], [0]]
    assert found["logprobs"][0] == [logprob(4), logprob(5), 0.0, 0.0, logprob(8)]
    assert found["rollmq_reward"] == [0.5, 0.0, None]
    assert found["rollmq_version"] == [2, None, None]
    assert found["rollmq_outcome"] == ["completed", "agent_timeout", "failed"]


def test_the_reward_function_says_what_the_evaluation_said() -> None:
    told: dict[str, float] = {}
    rewards = [1.0, None, 0.0, None]
    assert trl.reward(rollmq_reward=rewards, log_metric=told.__setitem__, prompts=[]) == rewards
    assert told == {"rollmq/untrainable": 0.5}


@dataclass
class FakeClient:
    """Answers a group of a task with what the script has for it, the last group first."""

    script: dict[str, list[list[Any]]]
    asked: list[tuple[str, int]] = field(default_factory=list)
    published: list[tuple[int, str]] = field(default_factory=list)

    def run(
        self, tasks: Iterable[Task], group_size: int, *, group_id: Callable[[Task], str]
    ) -> Iterator[Rollout]:
        stray = member("from before", "another group")
        groups = []
        for task in tasks:
            self.asked.append((task.task_id, group_size))
            name = group_id(task)
            made = self.script[task.task_id].pop(0)
            groups.append([make(f"{name}-{at}", name) for at, make in enumerate(made)])
        yield stray
        for group in reversed(groups):
            yield from group

    def publish(self, version: int, source: str, *, timeout_s: float) -> None:
        assert timeout_s > 0
        assert Path(source, "weights").exists()
        self.published.append((version, source))


def task(prompt: str) -> Task:
    return Task(prompt, "kind", {})


def scored(reward: float) -> Callable[[str, str], Rollout]:
    return lambda name, group: member(name, group, reward=reward)


def test_trl_gets_a_rollout_for_each_prompt_in_their_order() -> None:
    client = FakeClient({"x": [[scored(1), scored(2)]], "y": [[scored(3), scored(4)]]})
    found = trl.Asked(client, task)(["x", "x", "y", "y"])
    assert [each.reward for each in found] == [1, 2, 3, 4]
    assert client.asked == [("x", 2), ("y", 2)]


def test_groups_of_several_sizes_keep_their_places() -> None:
    script = {"x": [[scored(1), scored(2)], [scored(5)]], "y": [[scored(3)]], "z": [[scored(4)]]}
    found = trl.Asked(FakeClient(script), task)(["x", "x", "y", "z", "x"])
    assert [each.reward for each in found] == [1, 2, 3, 4, 5]


def test_what_failed_is_replaced_once_and_then_left_masked() -> None:
    client = FakeClient({"x": [[failed, scored(2), failed], [scored(7)], [failed]]})
    source = trl.Asked(client, task)
    found = trl.rollout_func(source)(["x", "x", "x"], None)
    assert found["rollmq_reward"] == [7, 2, None]
    assert client.asked == [("x", 3), ("x", 1), ("x", 1)]
    assert source.replaced == 2


def test_batches_of_the_sampler_must_have_the_size_that_trl_asks_for() -> None:
    batches = deque([SimpleNamespace(groups=pair()), SimpleNamespace(groups=pair())])
    source = trl.Sampled(iter(batches))
    assert [each.rollout_id for each in source(["?"] * 4)] == ["a-0", "a-1", "b-0", "b-1"]
    with pytest.raises(ClientError, match="the batch has 4 rollouts, TRL asks for 3"):
        source(["?"] * 3)
    with pytest.raises(ClientError, match="there are no more batches"):
        source(["?"] * 4)


class FakeModel:
    def save_pretrained(self, place: Path) -> None:
        place.mkdir(parents=True)
        (place / "weights").touch()


def fake_trainer(step: int) -> SimpleNamespace:
    accelerator = SimpleNamespace(
        is_main_process=True, unwrap_model=lambda model: model, wait_for_everyone=lambda: None
    )
    return SimpleNamespace(
        model=FakeModel(), state=SimpleNamespace(global_step=step), accelerator=accelerator
    )


def test_weights_are_published_when_they_changed_and_two_are_kept(tmp_path: Path) -> None:
    client = FakeClient({})
    weights = trl.Weights(client, tmp_path)
    for step in (0, 0, 1, 2, 2):
        weights(fake_trainer(step))
    assert client.published == [(at, str(tmp_path / f"version-{at}")) for at in (1, 2, 3)]
    assert sorted(each.name for each in tmp_path.iterdir()) == ["version-2", "version-3"]


def test_adapters_import_no_trainer() -> None:
    code = """if True:
        import sys, engine.adapters.trl, engine.adapters.verl, engine.adapters.slime
        print({name.split(".")[0] for name in sys.modules} & {"torch", "trl", "verl", "slime"})
    """
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "set()"


def test_the_bare_trainer_is_60_lines_and_knows_nothing_of_rollmq() -> None:
    text = (Path(__file__).parents[2] / "examples" / "bare_trainer.py").read_text()
    assert len(text.splitlines()) <= 60
    nodes = list(ast.walk(ast.parse(text)))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)}
    assert names - set(sys.stdlib_module_names) == {"numpy", "zmq"}


def test_rows_are_verbatim_pieces_of_the_trajectory() -> None:
    whole = member("r", pieces=TWO_SEGMENTS, segments=EDGES)
    assert whole.trajectory is not None
    cuts = [np.concatenate([each.prompt_ids, each.response_ids]) for each in rows(whole, "all")]
    edges = [edge for edge, _ in EDGES] + [len(whole.trajectory)]
    for cut, (start, end) in zip(cuts, pairwise(edges), strict=True):
        np.testing.assert_array_equal(cut, whole.trajectory.token_ids[start:end])
