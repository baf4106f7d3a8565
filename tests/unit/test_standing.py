"""Which backends may be used, without sockets and clocks."""

from typing import Any, TypeVar

import numpy as np
import pytest

from engine.arrays import array_buffer
from nodes.inference import events
from nodes.inference.events import Event, Instruction
from nodes.inference.fleet import Rules
from nodes.inference.messages import Generated, Pause, Resume, UpdateStep, UpdateWeights
from nodes.inference.placement import Placement
from nodes.inference.policies import named
from nodes.inference.probe import MOST_TOKENS, SALT, fault, probe_request
from nodes.inference.standing import FAILURES, Standings, Waits
from nodes.inference.updates import Weights

Kind = TypeVar("Kind")


class Bench:
    """Standings, a clock that tests move, and backends that do each step of an update at once."""

    def __init__(self, weights: Weights | None = None, **more: Any) -> None:
        rules = Rules(queue=50, idle_s=600.0, lost_after_s=60.0, unplaced_s=30.0)
        placement = Placement(named("sticky-least-loaded"), rules, "router")
        waits = Waits(probe_s=10.0, step_s=5.0, repeat_s=2.0)
        self.standings = Standings(placement, waits, "router", weights, **more)
        self.now = 0.0
        self.out: list[Instruction] = []
        self.cannot: dict[tuple[str, str], str] = {}
        self.holds: dict[str, int] = {}
        self.mute = False

    def do(self, event: Event) -> list[Instruction]:
        out = self.standings.handle(event, self.now)
        told = list(out)
        for each in out:
            if isinstance(each, events.TellStep) and not self.mute:
                told += self.step(each)
        self.out = told
        return told

    def step(self, told: events.TellStep) -> list[Instruction]:
        message, name = told.message, told.backend
        error = self.cannot.get((name, message.kind), "")
        if isinstance(message, UpdateWeights) and not error:
            self.holds[name] = message.policy_version
        step = UpdateStep(message.update_id, message.kind, self.holds.get(name, 0), error)
        return self.do(events.Stepped(name, step))

    def up(self, name: str = "b0", version: int = 0, *, probe: bool = True) -> list[Instruction]:
        self.holds[name] = version
        out = self.do(events.BackendUp(name, name.replace("b", "sim-"), 4, version))
        return self.answer_probe(name) if probe else out

    def answer_probe(self, name: str = "b0", wrong: str = "") -> list[Instruction]:
        ticket = self.standings.posts[name].probe
        assert ticket
        return self.do(events.Probed(name, ticket, wrong))

    def ask(self, request: str, session: str = "") -> list[Instruction]:
        return self.do(events.Asked("c", request, session or f"of-{request}"))

    def placed(self, request: str, session: str = "") -> str:
        found = [each for each in self.ask(request, session) if isinstance(each, events.Dispatch)]
        return found[0].backend if found else ""

    def state(self, name: str = "b0") -> str:
        return self.standings.posts[name].state

    def publish(self, version: int = 1, source: str = "/w/1", name: str = "u1") -> events.Published:
        out = self.do(events.Publish(name, version, source, "keep", 10.0))
        return only(out, events.Published)

    def salt(self) -> str:
        return self.standings.placement.salt


def only(instructions: list[Instruction], kind: type[Kind]) -> Kind:
    found = [each for each in instructions if isinstance(each, kind)]
    assert len(found) == 1, instructions
    return found[0]


def test_nothing_is_placed_before_the_probe_is_answered() -> None:
    bench = Bench()
    out = bench.up(probe=False)
    assert only(out, events.Probe).backend == "b0"
    assert bench.placed("r") == ""
    assert only(bench.answer_probe(), events.Dispatch).request_id == "r"


def test_a_wrong_answer_to_the_probe_refuses_the_backend_until_its_next_hello() -> None:
    bench = Bench()
    bench.up(probe=False)
    assert only(bench.answer_probe(wrong="misaligned"), events.Refuse).reason == "misaligned"
    assert bench.placed("r") == ""
    assert bench.do(events.BackendAlive("b0", ())) == [events.Welcome("b0")]
    assert only(bench.up(probe=False), events.Probe)


def test_a_probe_that_fails_for_now_is_repeated_with_a_growing_delay() -> None:
    bench = Bench()
    bench.up(probe=False)
    delays = []
    for _ in range(4):
        ticket = bench.standings.posts["b0"].probe
        bench.do(events.Refused("b0", ticket, "backend_error", "starting", retry=True))
        assert bench.state() == "sick"
        began = bench.now
        while not bench.standings.posts["b0"].probe:
            bench.now += 0.25
            bench.do(events.Tick())
        delays.append(bench.now - began)
    assert delays == [0.5, 1.0, 2.0, 4.0]
    bench.answer_probe()
    assert bench.state() == "open"


def test_a_backend_that_calls_the_probe_invalid_is_refused() -> None:
    bench = Bench()
    bench.up(probe=False)
    ticket = bench.standings.posts["b0"].probe
    out = bench.do(events.Refused("b0", ticket, "invalid", "no", retry=False))
    assert only(out, events.Refuse).reason == "its probe failed: invalid: no"


def test_a_probe_without_an_answer_is_given_up() -> None:
    bench = Bench()
    bench.up(probe=False)
    bench.now = 11.0
    bench.do(events.Tick())
    assert (bench.state(), bench.standings.posts["b0"].reason) == (
        "sick",
        "no answer to its probe in 10 s",
    )


def fail(bench: Bench, code: str, times: int) -> None:
    for number in range(times):
        out = bench.ask(f"{code}-{number}")
        first = only(out, events.Dispatch)
        bench.do(events.Refused(first.backend, first.ticket, code, "x", retry=False))  # type: ignore[arg-type]


def test_errors_in_a_row_shut_a_backend_until_a_probe_succeeds() -> None:
    bench = Bench()
    bench.up()
    fail(bench, "backend_error", FAILURES)
    assert bench.state() == "sick"
    assert bench.placed("r") == ""
    bench.now = 1.0
    bench.do(events.Tick())
    assert only(bench.answer_probe(), events.Dispatch).request_id == "r"


@pytest.mark.parametrize("code", ["invalid", "too_long", "full"])
def test_what_is_not_its_fault_is_never_counted_against_a_backend(code: str) -> None:
    bench = Bench()
    bench.up()
    fail(bench, code, 10)
    assert bench.state() == "open"


def test_an_answer_between_errors_begins_the_count_anew() -> None:
    bench = Bench()
    bench.up()
    for _ in range(3):
        fail(bench, "backend_error", FAILURES - 1)
        first = only(bench.ask("good"), events.Dispatch)
        bench.do(events.Answered("b0", first.ticket, 3))
    assert bench.state() == "open"


def test_a_sick_backend_finishes_what_runs_while_the_rest_moves() -> None:
    bench = Bench()
    bench.up()
    running = only(bench.ask("runs", "s"), events.Dispatch)
    fail(bench, "backend_error", FAILURES)
    bench.up("b1")
    assert bench.placed("next", "s") == "b1"
    delivered = only(bench.do(events.Answered("b0", running.ticket, 3)), events.Deliver)
    assert delivered.request_id == "runs"


def test_published_weights_reach_every_backend_and_name_those_that_hold_them() -> None:
    bench = Bench()
    bench.up("b0")
    bench.up("b1")
    published = bench.publish()
    assert (published.done, published.backends) == (True, ("sim-0", "sim-1"))
    assert bench.holds == {"b0": 1, "b1": 1}
    assert bench.placed("r") != ""


def test_nothing_is_dispatched_to_a_backend_that_is_paused() -> None:
    bench = Bench()
    bench.up()
    bench.mute = True
    bench.do(events.Publish("u1", 1, "/w/1", "keep", 10.0))
    assert bench.placed("r") == ""
    for step, version in (("pause", 0), ("update_weights", 1), ("resume", 1)):
        bench.do(events.Stepped("b0", UpdateStep("u1", step, version)))  # type: ignore[arg-type]
    assert only(bench.out, events.Dispatch).request_id == "r"


def test_sessions_that_begin_after_a_publish_have_another_salt_and_old_ones_keep_theirs() -> None:
    bench = Bench()
    bench.up()
    before = only(bench.ask("r1", "old"), events.Dispatch).salt
    bench.publish()
    again = only(bench.ask("r2", "old"), events.Dispatch).salt
    after = only(bench.ask("r3", "new"), events.Dispatch).salt
    assert before == again == "0"
    assert after == "1.u1"


def test_a_version_that_is_published_twice_has_two_salts() -> None:
    bench = Bench()
    bench.up()
    salts = []
    for name, version in (("u1", 1), ("u2", 0), ("u3", 1)):
        bench.publish(version, f"/w/{name}", name)
        salts.append(bench.salt())
    assert len(set(salts)) == 3


def test_a_topology_may_share_prefixes_across_versions() -> None:
    bench = Bench(share_prefix=True)
    bench.up()
    bench.publish()
    assert only(bench.ask("r"), events.Dispatch).salt == ""


def test_a_backend_that_joins_later_is_brought_to_the_published_weights_before_its_probe() -> None:
    bench = Bench()
    bench.up("b0")
    bench.publish()
    out = bench.up("b1", probe=False)
    kinds = [type(each.message) for each in out if isinstance(each, events.TellStep)]
    assert kinds == [Pause, UpdateWeights, Resume]
    assert bench.holds["b1"] == 1
    bench.answer_probe("b1")
    assert bench.state("b1") == "open"


def test_a_router_that_starts_again_knows_the_weights_and_their_salt() -> None:
    bench = Bench(Weights(3, "/w/3", "u3"))
    assert bench.salt() == "3.u3"
    bench.up("b0", version=3)
    assert bench.state() == "open"
    bench.up("b1", version=2)
    assert bench.holds["b1"] == 3


def test_a_backend_without_a_source_to_load_from_waits_for_the_next_publish() -> None:
    bench = Bench(Weights(3, "", "u3"))
    bench.up("b0", version=2, probe=False)
    assert bench.state() == "behind"
    assert "the trainer puts there itself" in bench.standings.posts["b0"].reason
    assert bench.publish(4, "").backends == ("sim-0",)
    bench.answer_probe()
    assert bench.state() == "open"


def test_a_failed_publish_leaves_everybody_with_the_weights_before() -> None:
    bench = Bench()
    bench.up("b0")
    bench.up("b1")
    bench.publish()
    bench.cannot["b1", "update_weights"] = "no space"
    published = bench.publish(2, "/w/2", "u2")
    assert not published.done
    assert published.failed == {"sim-1": "update_weights: no space"}
    assert bench.holds == {"b0": 1, "b1": 1}
    assert [bench.state(name) for name in ("b0", "b1")] == ["open", "open"]
    assert bench.salt() == "1.u1"


def test_a_backend_left_behind_is_not_used_until_it_has_caught_up() -> None:
    bench = Bench()
    bench.up("b0")
    bench.up("b1")
    bench.cannot["b1", "update_weights"] = "no space"
    published = bench.publish()
    assert (published.done, published.backends) == (True, ("sim-0",))
    assert bench.state("b1") == "behind"
    assert {bench.placed(f"r{n}") for n in range(4)} == {"b0"}
    del bench.cannot["b1", "update_weights"]
    bench.now = 1.0
    bench.do(events.Tick())
    bench.answer_probe("b1")
    assert (bench.state("b1"), bench.holds["b1"]) == ("open", 1)


def test_what_ran_on_a_backend_that_is_left_behind_goes_elsewhere() -> None:
    bench = Bench()
    bench.up("b0")
    bench.up("b1")
    first = {bench.placed(f"r{n}"): f"r{n}" for n in range(2)}
    bench.cannot["b1", "update_weights"] = "no space"
    out = bench.do(events.Publish("u1", 1, "/w/1", "keep", 10.0))
    assert only(out, events.Stop).backend == "b1"
    assert only(out, events.Dispatch).request_id == first["b1"]


def test_a_backend_that_does_not_resume_is_refused() -> None:
    bench = Bench()
    bench.up("b0")
    bench.up("b1")
    bench.cannot["b1", "resume"] = "stuck"
    out = bench.do(events.Publish("u1", 1, "/w/1", "keep", 10.0))
    assert only(out, events.Refuse).reason == "resume: stuck"
    assert bench.state("b1") == "refused"


def test_weights_that_change_behind_the_routers_back_are_noticed_by_a_heartbeat() -> None:
    bench = Bench(Weights(1, "/w/1", "u1"))
    bench.up("b0", version=1)
    bench.do(events.BackendAlive("b0", (), policy_version=9))
    assert bench.state() == "behind"
    bench.now = 1.0
    bench.do(events.Tick())
    assert bench.holds["b0"] == 1


def test_a_second_publish_waits_for_nobody() -> None:
    bench = Bench()
    bench.up()
    bench.mute = True
    bench.do(events.Publish("u1", 1, "/w/1", "keep", 10.0))
    out = bench.do(events.Publish("u2", 2, "/w/2", "keep", 10.0))
    assert only(out, events.Published).failed == {"": "another update is under way"}


def test_a_publish_without_a_backend_waits_for_one_until_its_deadline() -> None:
    bench = Bench()
    assert bench.do(events.Publish("u1", 1, "/w/1", "keep", 10.0)) == []
    assert only(bench.up(probe=False), events.Published).backends == ("sim-0",)
    bench = Bench()
    bench.do(events.Publish("u1", 1, "/w/1", "keep", 10.0))
    bench.now = 10.5
    assert only(bench.do(events.Tick()), events.Published).failed == {"": "no backend is there"}


def test_an_update_ends_by_its_deadline_though_nobody_answers() -> None:
    bench = Bench()
    bench.up()
    bench.mute = True
    bench.do(events.Publish("u1", 1, "/w/1", "keep", 40.0))
    while bench.now < 40.0 and not any(isinstance(e, events.Published) for e in bench.out):
        bench.now += 0.5
        bench.do(events.Tick())
    assert only(bench.out, events.Published).failed == {"sim-0": "pause: no answer in time"}
    assert bench.state() == "refused"


def test_an_update_that_loses_every_backend_goes_on_with_the_first_that_comes_back() -> None:
    bench = Bench()
    bench.up("b0")
    bench.mute = True
    bench.do(events.Publish("u1", 1, "/w/1", "keep", 10.0))
    assert not [
        each
        for each in bench.do(events.BackendGone("b0", "died"))
        if isinstance(each, events.Published)
    ]
    bench.mute = False
    assert only(bench.up("b1", probe=False), events.Published).backends == ("sim-1",)


def test_a_backend_that_joins_during_an_update_waits_for_its_end() -> None:
    bench = Bench()
    bench.up("b0")
    bench.mute = True
    bench.do(events.Publish("u1", 1, "/w/1", "keep", 10.0))
    bench.up("b1", probe=False)
    assert bench.state("b1") == "behind"
    bench.mute = False
    for step, version in (("pause", 0), ("update_weights", 1), ("resume", 1)):
        bench.do(events.Stepped("b0", UpdateStep("u1", step, version)))  # type: ignore[arg-type]
    assert bench.holds["b1"] == 1


def test_an_operator_drains_a_node_and_takes_it_back() -> None:
    bench = Bench()
    bench.up("b0")
    bench.up("b1")
    bench.do(events.NodeDrained("sim-0", drained=True))
    assert {bench.placed(f"r{n}") for n in range(3)} == {"b1"}
    bench.do(events.NodeDrained("sim-0", drained=False))
    assert "b0" in {bench.placed(f"again-{n}") for n in range(6)}


def test_a_drained_node_stays_drained_when_it_starts_again() -> None:
    bench = Bench(drained=frozenset({"sim-0"}))
    bench.up("b0")
    assert bench.state() == "open"
    assert bench.placed("r") == ""


def test_a_removed_node_loses_what_it_has_and_is_refused_until_it_is_wanted_again() -> None:
    bench = Bench()
    bench.up("b0")
    bench.up("b1")
    first = {bench.placed(f"r{n}"): f"r{n}" for n in range(2)}
    out = bench.do(events.NodeRemoved("sim-0", removed=True))
    assert only(out, events.Dispatch).request_id == first["b0"]
    assert bench.state("b0") == "refused"
    assert only(bench.up("b0", probe=False), events.Refuse).reason == "an operator removed it"
    bench.do(events.NodeRemoved("sim-0", removed=False))
    assert bench.do(events.BackendAlive("b0", ())) == [events.AskHello("b0")]
    bench.up("b0")
    assert bench.state("b0") == "open"


def answer(ids: Any, logprobs: Any, spans: Any, finish: Any = "length") -> tuple[Generated, Any]:
    arrays = {"token_ids": ids, "logprobs": logprobs, "policy_spans": spans}
    buffers, body = zip(*(array_buffer(*each) for each in arrays.items()), strict=True)
    return Generated("t", finish, 0, "b", 0.0, 0.0, 0.0, buffers), body


IDS, LOGPROBS = np.array([1, 2], np.int32), np.array([-0.5, -1.0], np.float32)
SPANS = np.array([[0, 2, 0]], np.int32)


def test_a_right_answer_to_the_probe_has_no_fault() -> None:
    assert fault(*answer(IDS, LOGPROBS, SPANS)) == ""
    assert fault(*answer(IDS, LOGPROBS, np.array([[0, 1, 0], [1, 2, 1]], np.int32))) == ""


@pytest.mark.parametrize(
    ("ids", "logprobs", "spans", "why"),
    [
        (IDS, LOGPROBS[:1], SPANS, "2,) token IDs but (1,)"),
        (IDS.astype(np.int64), LOGPROBS, SPANS, "arrays are int64"),
        (IDS, LOGPROBS.astype(np.float64), SPANS, "int32, float64"),
        (IDS, np.array([-1, np.nan], np.float32), SPANS, "not finite"),
        (IDS, np.array([-1, -9999.0], np.float32), SPANS, "missing"),
        (IDS, np.array([-1, 0.5], np.float32), SPANS, "above 0"),
        (IDS, LOGPROBS, SPANS[:0], "no span"),
        (IDS, LOGPROBS, np.array([[0, 1, 0]], np.int32), "do not cover"),
        (IDS, LOGPROBS, np.array([[1, 2, 0], [0, 1, 0]], np.int32), "do not cover"),
        (IDS, LOGPROBS, np.array([[0, 2]], np.int32), "arrays are"),
        (IDS[:0], LOGPROBS[:0], SPANS[:0], "0 tokens"),
        (-IDS, LOGPROBS, SPANS, "below 0"),
        (np.arange(9, dtype=np.int32), np.full(9, -1, np.float32), [[0, 9, 0]], "9 tokens"),
    ],
)
def test_a_wrong_answer_to_the_probe_is_named(
    ids: Any, logprobs: Any, spans: Any, why: str
) -> None:
    assert why in fault(*answer(ids, logprobs, np.asarray(spans, np.int32)))


def test_the_probe_asks_for_little_and_shares_no_cache() -> None:
    request, body = probe_request("t-1")
    assert (request.request_id, request.max_tokens, request.cache_salt) == (
        "t-1",
        MOST_TOKENS,
        SALT,
    )
    assert np.frombuffer(body[0], np.int32).tolist() == [5, 6, 7, 8]
