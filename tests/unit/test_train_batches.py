"""What the training example makes of groups of rollouts, before torch sees any of it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from examples.train.batches import (
    Row,
    advantages,
    collate,
    exact,
    rows,
)

from ..rollout_by_hand import rollout

REWARDS = st.lists(st.sampled_from((0.0, 0.25, 1.0)), min_size=2, max_size=12)


def row(token_ids: list[int], sampled: list[int], first: float = -1.0) -> Row:
    counts = np.array(sampled, dtype=np.bool_)
    logprobs = np.where(counts, first - np.arange(len(counts)), 0.0).astype(np.float32)
    return Row(np.array(token_ids, dtype=np.int64), counts, logprobs, 0.5, 0, len(counts))


@settings(deadline=None)
@given(REWARDS)
def test_advantages_of_a_group_add_up_to_nothing_and_have_unit_deviation(
    rewards: list[float],
) -> None:
    found = advantages(rewards)
    assert abs(found.sum()) < 1e-5
    assert found.std() == pytest.approx(1.0 if len(set(rewards)) > 1 else 0.0, abs=1e-5)
    assert np.argsort(found, kind="stable").tolist() == np.argsort(rewards, kind="stable").tolist()


def test_what_the_infrastructure_failed_has_no_row_and_does_not_move_the_mean() -> None:
    group = [rollout(1.0, [0, 1]), rollout(None, [], outcome="failed"), rollout(0.0, [0, 1])]
    assert [each.advantage for each in rows([group])] == [1.0, -1.0]


def test_each_segment_is_a_row_of_its_own() -> None:
    two = rollout(1.0, [0, 1, 0, 1, 1], segments=[(0, 2), (2, 5)], spans=[(1, 2, 3), (3, 5, 4)])
    found = rows([[two, rollout(0.0, [0, 1])]])
    assert [each.token_ids.tolist() for each in found[:2]] == [
        two.trajectory.token_ids[:2].tolist(),
        two.trajectory.token_ids[2:].tolist(),
    ]
    assert [each.version for each in found] == [3, 4, 0]
    assert [each.advantage for each in found] == [1.0, 1.0, -1.0]


def test_a_segment_in_which_nothing_was_sampled_has_no_row() -> None:
    cut = rollout(1.0, [0, 1, 0, 0], segments=[(0, 2), (2, 4)], spans=[(1, 2, 3)])
    assert len(rows([[cut]])) == 1


def test_only_what_the_first_version_sampled_alone_is_exact() -> None:
    spanning = rollout(1.0, [0, 1, 1, 0, 1, 1], spans=[(1, 3, 7), (4, 5, 7), (5, 6, 8)])
    (found,) = rows([[spanning]])
    assert (found.version, found.exact) == (7, 5)
    assert exact(found).sampled.tolist() == [False, True, True, False, True, False]


@settings(deadline=None)
@given(st.data())
def test_rows_side_by_side_hold_every_token_once_and_in_order(data: st.DataObject) -> None:
    beginning = data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=5))
    chosen = []
    for number in range(data.draw(st.integers(1, 4))):
        ids = beginning + data.draw(st.lists(st.integers(1, 3), max_size=5))
        mask = [
            0,
            *data.draw(st.lists(st.integers(0, 1), min_size=len(ids) - 1, max_size=len(ids) - 1)),
        ]
        chosen.append(row(ids, mask, -float(number)))
    batch = collate(chosen)
    assert not batch.counts[:, 0].any()
    for place, each in enumerate(chosen):
        length = len(each.token_ids) - len(batch.beginning)
        whole = [*batch.beginning, *batch.token_ids[place, :length]]
        assert whole == each.token_ids.tolist()
        assert not batch.counts[place, length:].any()
        assert (
            batch.token_ids[place][batch.counts[place]].tolist()
            == each.token_ids[each.sampled].tolist()
        )
    wanted = np.concatenate([each.logprobs[each.sampled] for each in chosen])
    assert batch.logprobs.tolist() == wanted.tolist()
    assert len(batch.advantages) == batch.counts.sum() == len(batch.logprobs)


def test_what_all_rows_begin_with_is_held_once() -> None:
    batch = collate([row([5, 6, 7, 8], [0, 0, 0, 1]), row([5, 6, 9, 8, 8], [0, 0, 0, 1, 1])])
    assert batch.beginning.tolist() == [5, 6]
    assert batch.token_ids.tolist() == [[7, 8, 0], [9, 8, 8]]


def test_the_place_before_a_sampled_token_is_never_shared() -> None:
    batch = collate([row([5, 6, 7, 8], [0, 0, 1, 1]), row([5, 6, 7, 8], [0, 0, 0, 1])])
    assert batch.beginning.tolist() == [5]


def test_a_sampled_token_that_nothing_predicts_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing predicts it"):
        collate([row([5, 6], [1, 1])])
    with pytest.raises(ValueError, match="no rows"):
        collate([])
