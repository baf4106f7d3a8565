"""How samplings end over real processes: sources, filters, callers that leave, cancels."""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event
from time import monotonic
from typing import Any

import pytest

from engine import Batch, Client, SourceFailed, Task

from ..chaos.scene import Scene, running, until
from ..sampling_play import Play, meanwhile, members_in, of, prompts_in

SLOTS = 8
pytestmark = pytest.mark.timeout(90)


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    stages = [{"name": stage, "slots": SLOTS, "attempts": 1} for stage in ("run", "eval")]
    filters = {"choosy": "chaoskinds.filters:choosy"}
    with (
        TemporaryDirectory(prefix="rq") as folder,
        running(Path(folder), stages=stages, filters=filters) as scene,
    ):
        yield scene


@pytest.fixture
def play(scene: Scene, tmp_path: Path) -> Play:
    return Play(scene, tmp_path)


def works(client: Client, play: Play) -> bool:
    """Whether a further sampling of this client gets its batch."""
    batches = client.sample(play.prompts(), groups=2, group_size=2)
    batch = next(batches)
    batches.close()
    return batch.reason == "complete"


def test_a_source_that_blocks_ends_the_sampling_after_its_patience(play: Play) -> None:
    go_on = Event()

    def blocking() -> Iterator[Task]:
        yield play.prompt()
        yield play.prompt()
        go_on.wait(60)

    found: list[Batch] = []
    with play.scene.client() as client:
        batches = client.sample(blocking(), groups=3, group_size=2, source_patience_s=0.5)
        with pytest.raises(SourceFailed, match=r"gave nothing for 0\.5 s"):
            found.extend(batches)
        go_on.set()
        assert [(batch.reason, prompts_in(batch)) for batch in found] == [("blocked", {0, 1})]
        play.until_settled(client)
        assert works(client, play)


def test_a_sources_patience_is_not_used_up_while_no_prompt_is_wanted(play: Play) -> None:
    patience_s = 0.3
    prompts = [play.prompt("gate") for _ in range(8)]

    def open_late() -> None:
        play.until_begun(of((0, 1, 2, 3)))
        late = monotonic() + 2 * patience_s
        until(lambda: monotonic() > late, "time to pass")
        play.gate("gate").touch()

    asked: dict[str, Any] = {"groups": 4, "group_size": 2, "in_flight": SLOTS, "over": "carry"}
    with play.scene.client() as client, meanwhile(open_late):
        found = list(client.sample(prompts, **asked, source_patience_s=patience_s))
    assert [(batch.reason, len(batch.groups)) for batch in found] == [("complete", 4)] * 2


def test_a_filter_that_raises_ends_the_sampling_with_what_it_raised(play: Play) -> None:
    prompts = [play.prompt(), play.prompt(rewards=(-1,))]
    found: list[Batch] = []
    with play.scene.client() as client:
        batches = client.sample(
            play.prompts(*prompts), groups=3, group_size=2, keep="choosy", in_flight=2
        )
        with pytest.raises(SourceFailed, match=r"'choosy' raised ValueError: a reward below 0"):
            found.extend(batches)
        assert [(batch.reason, prompts_in(batch)) for batch in found] == [("filter", {0})]
        play.until_settled(client)
        assert works(client, play)


def test_an_unnamed_sampling_that_the_caller_breaks_out_of_is_cancelled(play: Play) -> None:
    with play.scene.client() as client:
        for _ in client.sample(
            play.prompts(play.prompt(), gate="never"), groups=1, group_size=2, ahead=1, over="carry"
        ):
            play.until_begun(of((1, 2, 3)))
            break
        play.until_settled(client)
        assert play.left() >= of((1, 2, 3))
        assert list(client.rollouts()) == []
        assert works(client, play)


def test_an_unnamed_sampling_whose_trainer_fails_is_cancelled(play: Play) -> None:
    def train() -> None:
        with play.scene.client("failing") as client:
            asked = {"groups": 1, "group_size": 2, "ahead": 1, "over": "carry"}
            for batch in client.sample(play.prompts(play.prompt(), gate="never"), **asked):
                play.until_begun(of((1, 2)))
                raise ArithmeticError(batch.number)

    with pytest.raises(ArithmeticError):
        train()
    with play.scene.client("failing") as client:
        play.until_settled(client)
        assert play.left() >= of((1, 2))


def test_a_named_sampling_that_the_caller_breaks_out_of_goes_on_with_another_client(
    play: Play,
) -> None:
    asked: dict[str, Any] = {"groups": 2, "group_size": 2, "over": "carry", "sampling_id": "lasts"}
    prompts = [play.prompt(), play.prompt(), *(play.prompt("gate") for _ in range(4))]
    with play.scene.client("patient") as client:
        for batch in client.sample(prompts, **asked):
            first = batch
            play.until_begun(of((2, 3)))
            break
        assert play.sampling(client)["open"] >= 2
    with play.scene.client("observer") as observer:
        (state,) = observer.status()["samplings"]
        assert (state["client_id"], state["taken"]) == ("patient", 0)
    with play.scene.client("patient") as client:
        play.gate("gate").touch()
        found = list(client.sample(prompts, **asked))
        play.until_settled(client)
    assert members_in(found[0]) == members_in(first)
    assert [batch.number for batch in found] == [0, 1, 2]
    assert set().union(*map(members_in, found)) == of((0, 1, 2, 3, 4, 5))
    assert play.left() == set()
    assert play.attempts() == [1] * 12


def test_a_named_sampling_is_closed_by_whoever_does_not_want_it(play: Play) -> None:
    asked: dict[str, Any] = {
        "groups": 1,
        "group_size": 2,
        "over": "carry",
        "sampling_id": "unwanted",
    }
    with play.scene.client("wanton") as client:
        for _ in client.sample(play.prompts(play.prompt(), gate="never"), **asked):
            play.until_begun(of((1, 2)))
            break
    with play.scene.client("wanton") as client:
        client.close_sampling("unwanted")
        play.until_settled(client)
        assert play.left() >= of((1, 2))
        assert list(client.rollouts()) == []


@pytest.mark.parametrize("by", ["self", "other"])
def test_a_cancel_of_everything_ends_a_sampling_with_what_it_has(play: Play, by: str) -> None:
    prompts = play.prompts(play.prompt(), gate="never")
    found: list[Batch] = []
    with play.scene.client() as client, play.scene.client("other") as other:
        for batch in client.sample(prompts, groups=1, group_size=2, ahead=1, over="carry"):
            found.append(batch)
            if batch.reason == "cancelled":
                continue
            play.until_begun(of((1, 2)))
            if by == "self":
                answer = client.cancel(everything=True)
            else:
                answer = other.cancel(everything=True, client_id=client.client_id)
            assert len(answer.receipts) >= 4
        assert [batch.reason for batch in found] == ["complete", "cancelled"]
        assert prompts_in(found[-1]) == set()
        play.until_settled(client)
        assert play.left() >= of((1, 2))
        assert works(client, play)


def test_what_was_kept_before_a_cancel_is_in_the_last_batch(play: Play) -> None:
    prompts = play.prompts(play.prompt(), gate="never")

    def cancel() -> None:
        with play.scene.client("other") as other:
            until(lambda: _kept(other, "busy"), "a group to be kept")
            assert other.cancel(everything=True, client_id="busy").receipts

    with play.scene.client("busy") as client, meanwhile(cancel):
        found = list(client.sample(prompts, groups=2, group_size=2))
    assert [(batch.reason, prompts_in(batch)) for batch in found] == [("cancelled", {0})]


def _kept(client: Client, whose: str) -> int:
    found = {each["client_id"]: each for each in client.status()["samplings"]}
    kept: int = found[whose]["kept"] if whose in found else 0
    return kept
