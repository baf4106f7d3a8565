"""The simulated server's scheduler: blocks, admission, chunks and preemption."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nodes.backends.simulator.blocks import BlockPool, block_names
from nodes.backends.simulator.schedule import Limits, Request, Scheduler

BLOCK = 4


def request(ticket: str, prompt: int, length: int, family: str = "") -> Request[None]:
    """Return a request; those of one family share their tokens."""
    blocks = (prompt + length) // BLOCK
    names = [(family or ticket, place) for place in range(blocks)]
    return Request(ticket, prompt, length, names, 0.0, None)


def scheduler(blocks: int = 8, tokens: int = 16, requests: int = 8) -> Scheduler[None]:
    return Scheduler[None](Limits(blocks, BLOCK, tokens, requests))


def step(server: Scheduler[None]) -> tuple[dict[str, int], list[str]]:
    """Run a step; return the tokens computed of each request, and the requests that ended."""
    begun = server.begin_step()
    if begun is None:
        return {}, []
    parts = {request.ticket: tokens for request, tokens in begun.parts}
    return parts, [request.ticket for request in server.end_step(begun)]


def run(server: Scheduler[None], most: int = 10_000) -> list[str]:
    ended: list[str] = []
    for _ in range(most):
        _, over = step(server)
        ended += over
        if not len(server):
            return ended
    raise AssertionError(f"{len(server)} requests are not over after {most} steps")


def test_a_prompt_is_computed_in_chunks_and_then_decodes() -> None:
    server = scheduler(blocks=16)
    server.add(request("a", prompt=40, length=3))
    assert [step(server) for _ in range(5)] == [
        ({"a": 16}, []),
        ({"a": 16}, []),
        ({"a": 8}, []),
        ({"a": 1}, []),
        ({"a": 1}, ["a"]),
    ]
    assert server.pool.free == 16


def test_those_that_decode_go_before_prompts_in_the_budget() -> None:
    server = scheduler(blocks=16)
    server.add(request("a", prompt=4, length=9))
    step(server)
    server.add(request("b", prompt=30, length=1))
    assert step(server)[0] == {"a": 1, "b": 15}
    assert step(server)[0] == {"a": 1, "b": 15}


def test_no_more_run_than_have_places() -> None:
    server = scheduler(requests=2)
    for ticket in "abc":
        server.add(request(ticket, prompt=2, length=2))
    assert step(server)[0] == {"a": 2, "b": 2}
    assert step(server) == ({"a": 1, "b": 1}, ["a", "b"])
    assert step(server)[0] == {"c": 2}


def test_a_prompt_that_does_not_fit_whole_waits_and_so_do_those_behind_it() -> None:
    server = scheduler(blocks=8)
    server.add(request("a", prompt=12, length=2))
    server.add(request("b", prompt=24, length=2))
    server.add(request("c", prompt=2, length=2))
    assert step(server)[0] == {"a": 12}
    assert step(server) == ({"a": 1}, ["a"])
    assert step(server)[0] == {"b": 16}


def test_the_next_turn_finds_its_whole_blocks_and_what_was_sampled() -> None:
    server = scheduler(blocks=16)
    server.add(request("first", prompt=10, length=7, family="s"))
    run(server)
    second = request("second", prompt=30, length=1, family="s")
    server.add(second)
    run(server)
    assert second.cached_tokens == 16
    assert (server.counts.prefix_queries, server.counts.prefix_hits) == (40, 16)


def test_the_last_token_sampled_is_not_in_the_cache() -> None:
    server = scheduler(blocks=16)
    server.add(request("first", prompt=10, length=6, family="s"))
    run(server)
    second = request("second", prompt=17, length=1, family="s")
    server.add(second)
    run(server)
    assert second.cached_tokens == 12


def test_at_least_one_token_of_a_prompt_is_computed() -> None:
    server = scheduler()
    for ticket in "ab":
        asked = request(ticket, prompt=8, length=1, family="s")
        server.add(asked)
        run(server)
    assert asked.cached_tokens == 4


def test_two_of_one_group_share_the_blocks_that_the_first_computes() -> None:
    server = scheduler(blocks=8)
    for ticket in "ab":
        server.add(request(ticket, prompt=9, length=1, family="s"))
    assert step(server)[0] == {"a": 9, "b": 1}
    assert server.pool.free == 8


def test_the_last_to_come_is_preempted_and_goes_on_before_the_others() -> None:
    server = scheduler(blocks=4)
    first, last = request("a", prompt=6, length=9), request("b", prompt=6, length=4)
    for asked in (first, last, request("c", prompt=2, length=2)):
        server.add(asked)
    assert run(server) == ["a", "b", "c"]
    assert (first.preemptions, last.preemptions, server.counts.preemptions) == (0, 1, 1)
    assert last.cached_tokens == 0


def test_a_preempted_request_loses_no_token() -> None:
    server = scheduler(blocks=4)
    last = request("b", prompt=6, length=6)
    server.add(request("a", prompt=6, length=9))
    server.add(last)
    while not last.preemptions:
        step(server)
    emitted = last.emitted
    assert 0 < emitted < 6
    run(server)
    assert last.emitted == 6
    assert server.counts.tokens == 15


def test_a_closed_gate_freezes_and_no_new_lets_finish_what_has_begun() -> None:
    server = scheduler()
    server.add(request("a", prompt=4, length=3))
    step(server)
    server.add(request("b", prompt=4, length=1))
    server.gate = "closed"
    assert step(server) == ({}, [])
    server.gate = "no_new"
    assert [step(server) for _ in range(3)] == [({"a": 1}, []), ({"a": 1}, ["a"]), ({}, [])]
    server.gate = "open"
    assert step(server) == ({"b": 4}, ["b"])


def test_what_never_fits_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match="33 tokens"):
        scheduler().add(request("a", prompt=30, length=3))


def test_blocks_without_a_name_leave_before_the_least_recently_used() -> None:
    pool = BlockPool(4)
    old = pool.take(2)
    pool.name(old[0], "old 0")
    pool.give_back(old)
    new = pool.take(2)
    assert old[1] in new
    pool.name(new[0], "new 0")
    pool.name(new[1], "new 1")
    pool.give_back(new)
    pool.take(3)
    assert pool.find(["new 0", "new 1"], 2) == [new[0]]
    assert not pool.find(["old 0"], 1)


def test_a_name_leads_to_the_block_that_is_left_when_its_twin_is_taken() -> None:
    pool = BlockPool(2)
    first, second = pool.take(2)
    pool.name(first, "same")
    pool.name(second, "same")
    pool.give_back([first])
    pool.take(1)
    assert pool.find(["same"], 1) == [second]


def test_names_depend_on_all_tokens_before_and_on_the_salt() -> None:
    tokens = np.arange(20, dtype=np.int32)
    names = block_names(tokens, 8)
    assert len(names) == 2
    assert block_names(tokens[:17], 8) == names
    assert set(block_names(tokens, 8, "1")).isdisjoint(names)
    changed = tokens.copy()
    changed[0] = 7
    assert set(block_names(changed, 8)).isdisjoint(names)


ASKED = st.tuples(
    st.integers(0, 3),  # steps before it arrives
    st.integers(1, 20),  # prompt
    st.integers(1, 12),  # completion
    st.sampled_from("xyz"),  # family
    st.booleans(),  # whether it is aborted later
)


@settings(max_examples=300, deadline=None)
@given(st.lists(ASKED, max_size=14), st.integers(8, 16), st.integers(1, 20), st.integers(1, 5))
def test_whatever_arrives_every_request_ends_once_and_no_block_is_lost(
    asked: list[tuple[int, int, int, str, bool]], blocks: int, tokens: int, places: int
) -> None:
    server = scheduler(blocks, tokens, places)
    requests, ended = [], []
    for number, (steps, prompt, length, family, is_aborted) in enumerate(asked):
        for _ in range(steps):
            ended += step(server)[1]
            check(server)
        each = request(str(number), prompt, length, family)
        server.add(each)
        requests.append((each, is_aborted))
    for each, is_aborted in requests:
        if is_aborted and not each.is_over:
            server.remove(each)
            check(server)
    ended += run(server) if len(server) else []
    assert len(ended) == len(set(ended))
    assert all(each.is_over for each, _ in requests)
    assert all(each.emitted == each.length for each, _ in requests if each.ticket in ended)
    assert server.pool.free == blocks


def check(server: Scheduler[None]) -> None:
    """Blocks in use are those of running requests, each counted as often as it is used."""
    used = [block for each in server.running for block in each.blocks]
    assert server.pool.free == server.pool.size - len(set(used))
    for each in server.running:
        assert len(each.blocks) == -(-each.computed // BLOCK) or each.computed == 0
        assert each.computed <= each.tokens
        for block, name in zip(each.blocks[: each.named], each.names, strict=False):
            assert server.pool.find([name], 1)
            assert block < server.pool.size
    assert all(not each.blocks and not each.computed for each in server.waiting)
