"""Promises of conversations over random turns, templates and truncations."""

from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Any

import numpy as np
import orjson
from hypothesis import given, settings
from hypothesis import strategies as st

from nodes.agent import ChatmlTemplate, Conversation, Message, ToolCall
from nodes.agent.hermes import read_completion
from nodes.agent.template import is_closed
from nodes.tasks import Generation
from nodes.tokens import Tokens

from ..agent_kit import (
    ADD,
    COUNTING,
    END,
    ODD,
    QWEN3,
    VOCABULARY,
    Ids,
    Watched,
    fixed_base,
    generation,
    qwen_tokenizer,
    rendered,
)

QWEN = qwen_tokenizer()
MADE = {
    "chatml": lambda tokenizer: ChatmlTemplate(Tokens(Watched(tokenizer))),
    "renderer": lambda tokenizer: rendered("qwen3", tokenizer),
    "fixed base": lambda tokenizer: fixed_base(QWEN3, tokenizer),
    "odd": lambda tokenizer: fixed_base(ODD, tokenizer),
    "counting": lambda tokenizer: fixed_base(COUNTING, tokenizer),
}
TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=["C"]), max_size=12)


@dataclass(frozen=True)
class Turn:
    """What the model samples, in pieces, and what it hears; `rewrites` changes what was said."""

    pieces: list[list[int]]
    is_closed: bool
    hears: list[Message]
    rewrites: bool


def turns(vocabulary: int) -> st.SearchStrategy[Turn]:
    hears = st.one_of(
        st.lists(st.builds(Message, st.just("user"), TEXTS), min_size=1, max_size=1),
        st.lists(st.builds(Message, st.just("tool"), TEXTS, name=st.just("add")), min_size=1),
    )
    piece = st.lists(st.integers(0, vocabulary - 1), max_size=12)
    pieces = st.lists(piece, min_size=1, max_size=3)
    return st.builds(Turn, pieces, st.booleans(), hears, st.sampled_from([False] * 5 + [True]))


class Played:
    """A conversation, what it was told, and what it should have written down."""

    def __init__(self, template: Any) -> None:
        self.template = template
        self.opening = [Message("system", "Be brief."), Message("user", "2 + 3?")]
        self.talk = Conversation(template, self.opening, [ADD])
        self.prompts: list[Ids] = []
        self.completions: list[Ids] = []
        self.generations: list[Generation] = []

    def play(self, turn: Turn) -> None:
        self.prompts.append(self.talk.prompt())
        pieces = [list(piece) for piece in turn.pieces]
        if turn.is_closed:
            pieces[-1].append(self.template.stop_token_ids[0])
        before = self.talk.prompt().tolist()
        for place, piece in enumerate(pieces):
            assert self.talk.prompt().tolist() == before
            is_last = place == len(pieces) - 1
            reason = ("stop" if turn.is_closed else "length") if is_last else "abort"
            made = generation(piece, reason, version=len(self.generations))
            self.talk.sampled(made, 0.1)
            self.generations.append(made)
            before += piece
        self.completions.append(np.array(list(chain(*pieces)), dtype=np.int32))
        self.talk.said()
        if turn.rewrites:
            self.talk.rewrite([*self.opening, *turn.hears])
        else:
            self.talk.say(turn.hears)


def check_prefixes(played: Played) -> None:
    segments = played.talk.segments()
    assert [segment["reason"] for segment in segments].count("opening") == 1
    assert segments[0]["reason"] == "opening"
    places = zip(played.prompts, played.completions, played.talk.turns, strict=True)
    for (prompt, completion, turn), (later, _, next_turn) in pairwise(places):
        said = [*prompt.tolist(), *completion.tolist()]
        if turn["segment"] == next_turn["segment"]:
            assert later[: len(said)].tolist() == said
        else:
            reason = segments[next_turn["segment"]]["reason"]
            closed = is_closed(completion, played.template.stop_token_ids)
            assert reason in ({"template", "rewrite"} if closed else {"truncation", "rewrite"})


def check_alignment(played: Played) -> None:
    trajectory, segments = played.talk.trajectory(), played.talk.segments()
    mask = np.zeros(len(trajectory), dtype=np.uint8)
    logprobs = np.zeros(len(trajectory), dtype=np.float32)
    versions = np.full(len(trajectory), -1)
    sampled = iter(played.generations)
    for prompt, completion, turn in zip(
        played.prompts, played.completions, played.talk.turns, strict=True
    ):
        start, end = turn["completion"]
        assert trajectory.token_ids[slice(*turn["prompt"])].tolist() == prompt.tolist()
        assert trajectory.token_ids[start:end].tolist() == completion.tolist()
        assert turn["prompt"] == [segments[turn["segment"]]["start"], start]
        place = start
        while place < end or start == end:
            made = next(sampled)
            stop = place + len(made.token_ids)
            mask[place:stop], logprobs[place:stop] = 1, made.logprobs
            versions[place:stop] = played.generations.index(made)
            place = stop
            if place == end and made.finish_reason != "abort":
                break
    assert trajectory.loss_mask.tolist() == mask.tolist()
    assert trajectory.logprobs.tolist() == logprobs.tolist()
    found = np.full(len(trajectory), -1)
    for first, last, version in trajectory.policy_spans:
        found[first:last] = version
    assert found.tolist() == versions.tolist()


def check_segments(played: Played) -> None:
    edges = played.talk.segment_array()
    assert edges.dtype == np.int32
    assert edges[0, 0] == 0
    assert edges[-1, 1] == len(played.talk.trajectory())
    assert edges[1:, 0].tolist() == edges[:-1, 1].tolist()


@settings(deadline=None)
@given(st.sampled_from(list(MADE)), st.lists(turns(QWEN.get_vocab_size()), max_size=6))
def test_prompts_only_grow_and_every_array_stays_aligned(kind: str, script: list[Turn]) -> None:
    played = Played(MADE[kind](QWEN))
    for turn in script:
        played.play(turn)
    check_prefixes(played)
    check_alignment(played)
    check_segments(played)


@settings(deadline=None)
@given(st.sampled_from(list(MADE)), st.lists(turns(QWEN.get_vocab_size()), min_size=1, max_size=4))
def test_a_segment_that_goes_on_never_encodes_what_was_sampled(
    kind: str, script: list[Turn]
) -> None:
    watched = Watched(QWEN)
    played = Played(MADE[kind](watched))
    for turn in script:
        watched.encoded.clear()
        before = len(played.talk.segments())
        played.play(turn)
        if len(played.talk.segments()) == before:
            said = QWEN.decode(played.completions[-1].tolist(), skip_special_tokens=False)
            heard = "".join(message.text for message in turn.hears)
            told = "".join(watched.encoded)
            assert len(said) < 12 or said in heard or said not in told


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(9, VOCABULARY.size - 1), min_size=40), min_size=1, max_size=3))
def test_tokens_that_a_round_trip_through_text_changes_are_kept(
    completions: list[list[int]],
) -> None:
    played = Played(ChatmlTemplate(VOCABULARY))
    for ids in completions:
        played.play(Turn([ids], is_closed=True, hears=[Message("user", "Go on.")], rewrites=False))
    trajectory = played.talk.trajectory()
    assert len(played.talk.segments()) == 1
    for ids, turn in zip(completions, played.talk.turns, strict=True):
        start, end = turn["completion"]
        assert trajectory.token_ids[start : end - 1].tolist() == ids


def test_the_round_trip_would_have_changed_nearly_all_random_completions() -> None:
    chance = np.random.default_rng(7)
    drawn = chance.integers(9, VOCABULARY.size, (100, 200))
    changed = sum(VOCABULARY.encode(VOCABULARY.decode(ids)) != ids.tolist() for ids in drawn)
    assert changed >= 95


def test_a_counting_template_opens_a_segment_for_every_turn() -> None:
    played = Played(fixed_base(COUNTING, QWEN))
    said = QWEN.encode("5" + END, add_special_tokens=False).ids[:-1]
    for _ in range(2):
        played.play(Turn([said], True, [Message("user", "Sure?")], rewrites=False))
    assert [each["reason"] for each in played.talk.segments()] == [
        "opening",
        "template",
        "template",
    ]


CALLS = st.builds("<tool_call>{}</tool_call>".format, st.text(max_size=40))


@settings(deadline=None)
@given(st.lists(st.one_of(TEXTS, CALLS, st.sampled_from(["<think>", "</think>", "<tool_call>"]))))
def test_any_completion_is_read_as_something_that_can_be_sent(parts: list[str]) -> None:
    said = read_completion("".join(parts))
    for each in said.calls:
        if isinstance(each, ToolCall):
            assert orjson.loads(orjson.dumps([each.name, each.arguments]))[0] == each.name
        else:
            assert each.why
