"""The allow-list as a value: whose key it is, who may enter where, and what is refused."""

import orjson
import pytest
import zmq

from engine.errors import KeysError
from engine.security import Allowed, Peer, domain_of_work, owns
from engine.security.allowed import Entry, decide, revoked
from engine.topology import BROKER_EDGES, ROUTER_EDGES


def public() -> str:
    return zmq.curve_keypair()[0].decode()


SERVER, HOST, OTHER_HOST, TRAINER, OPERATOR, STRANGER = (public() for _ in range(6))
LIST = Allowed(
    SERVER,
    (
        Entry("a", "host", (HOST,)),
        Entry("b", "host", (OTHER_HOST,)),
        Entry("a", "trainer", (TRAINER,)),
        Entry("operator", "operator", (OPERATOR,)),
    ),
)


def test_a_key_has_an_owner_or_none() -> None:
    assert LIST.owner(HOST) == Peer("a", "host")
    assert LIST.owner(TRAINER) == Peer("a", "trainer")
    assert LIST.owner(STRANGER) is None
    assert LIST.owner(SERVER) is None


ENTERS = {
    "front": {TRAINER, OPERATOR},
    "control": {HOST, OTHER_HOST},
    "results": {HOST, OTHER_HOST},
    "events": {HOST, OTHER_HOST, TRAINER, OPERATOR},
    "router": {HOST, OTHER_HOST},
    "router_backends": {HOST, OTHER_HOST},
    domain_of_work("a"): {HOST},
    domain_of_work("b"): {OTHER_HOST},
    domain_of_work("operator"): set(),
    "rollmq": set(),
    "": set(),
}


@pytest.mark.parametrize("domain", ENTERS)
def test_each_port_takes_the_keys_of_its_roles(domain: str) -> None:
    everybody = {HOST, OTHER_HOST, TRAINER, OPERATOR, STRANGER, SERVER, ""}
    assert {key for key in everybody if decide(LIST, domain, "CURVE", key)[0]} == ENTERS[domain]


def test_every_edge_has_its_rule() -> None:
    assert set(BROKER_EDGES + ROUTER_EDGES) < set(ENTERS)


@pytest.mark.parametrize("mechanism", ["NULL", "PLAIN", "GSSAPI", "", "curve"])
def test_only_curve_enters(mechanism: str) -> None:
    assert decide(LIST, "front", mechanism, TRAINER) == (False, "no key")


@pytest.mark.parametrize(
    ("client_id", "is_own"),
    [("t", True), ("t-0", True), ("t-", True), ("t0", False), ("", False), ("u", False)],
)
def test_a_trainers_client_id_is_its_name_or_begins_with_it(client_id: str, is_own: bool) -> None:
    assert owns(Peer("t", "trainer"), client_id) is is_own
    assert owns(Peer("o", "operator"), client_id)


def test_what_is_written_reads_the_same() -> None:
    assert Allowed.read(LIST.text()) == LIST


def test_a_key_that_goes_or_changes_hands_is_revoked() -> None:
    fewer = LIST.put(Entry("a", "host", ()))
    assert revoked(LIST, fewer) == {HOST: Peer("a", "host")}
    moved = fewer.put(Entry("b", "host", (OTHER_HOST, HOST)))
    assert revoked(LIST, moved) == {HOST: Peer("a", "host")}
    assert revoked(LIST, LIST.add(Entry("c", "host", (STRANGER,)))) == {}


def test_a_name_that_a_host_and_a_client_share_needs_its_role() -> None:
    with pytest.raises(KeysError, match="is a host and a client"):
        LIST.find("a")
    assert LIST.find("a", "trainer").keys == (TRAINER,)
    with pytest.raises(KeysError, match="no key of 'x'"):
        LIST.find("x")


def entry(**changes: object) -> bytes:
    one = {"name": "t", "role": "trainer", "keys": [TRAINER], **changes}
    return orjson.dumps({"version": 1, "server": SERVER, "allowed": [one]})


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b"{}",
        b"\xff",
        orjson.dumps({"version": 2, "server": SERVER, "allowed": []}),
        orjson.dumps({"version": 1, "server": "short", "allowed": []}),
        entry(role="root"),
        entry(keys=["x"]),
        entry(keys=[TRAINER, TRAINER]),
        entry(keys=[SERVER]),
        entry(name="../t"),
        entry(name=""),
        entry(name="t\n"),
        entry(more=1),
    ],
    ids=lambda _: "text",  # keys are fresh in every process
)
def test_what_is_no_list_is_refused(text: bytes) -> None:
    with pytest.raises(KeysError):
        Allowed.read(text)
