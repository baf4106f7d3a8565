"""The allow-list: which public key is whose, and through which sockets each role may come.

Job: read and write the list as JSON, find a key's owner, and decide on one ZAP request.
Does not know: files, sockets, or the clock.
Invariants: a key belongs to one name; a name has one role beside others of its kind (hosts apart
from clients). Whatever is not on the list is refused.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

import orjson

from ..errors import KeysError, RemoteProtocolError
from ..typed import AtLeast, Mismatch, compile_decoder

Role = Literal["host", "trainer", "operator"]
Domain = str
"""A binding socket's place: an edge's name, or that of one host's work."""

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
Z85_KEY = re.compile(r"[0-9a-zA-Z.\-:+=^!/*?&<>()\[\]{}@%$#]{40}")
CLIENTS: frozenset[Role] = frozenset({"trainer", "operator"})
HOSTS: frozenset[Role] = frozenset({"host"})
MAY_ENTER: dict[Domain, frozenset[Role]] = {
    "front": CLIENTS,
    "control": HOSTS,
    "results": HOSTS,
    "events": HOSTS | CLIENTS,
    "router": HOSTS,
    "router_backends": HOSTS,
}
WORK = "work:"
FORMAT = 1


class Denied(RemoteProtocolError):  # noqa: N818 - reads as the answer that it reports
    """A key that is allowed in said what it may not say, or is allowed in no more."""


@dataclass(frozen=True, slots=True)
class Peer:
    """Whose key it is."""

    name: str
    role: Role

    def __str__(self) -> str:
        """Return it as messages and logs name it."""
        return f"{self.role} {self.name}"


@dataclass(frozen=True, slots=True)
class Entry:
    """One name on the list, with its public keys in Z85, the oldest first."""

    name: str
    role: Role
    keys: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _File:
    version: Annotated[int, AtLeast(1)]
    server: str
    allowed: tuple[Entry, ...]


_READ = compile_decoder(_File)
ANYONE = Peer("anyone", "operator")
"""Who everybody is where there are no keys."""


@dataclass(frozen=True, slots=True)
class Allowed:
    """The list as a value; `server` is the public key of the binding processes, in Z85."""

    server: str
    entries: tuple[Entry, ...] = ()
    _owners: dict[str, Peer] = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        """Check it. Raises: KeysError."""
        owners: dict[str, Peer] = {}
        names = set()
        _expect_key(self.server, "server")
        for entry in self.entries:
            kind = entry.role == "host", entry.name
            if not NAME.fullmatch(entry.name) or kind in names:
                raise KeysError(f"{entry.name!r} is no name, or is on the list twice")
            names.add(kind)
            for key in entry.keys:
                _expect_key(key, entry.name)
                if key in owners or key == self.server:
                    raise KeysError(f"a key of {entry.name!r} is on the list twice")
                owners[key] = Peer(entry.name, entry.role)
        object.__setattr__(self, "_owners", owners)

    @classmethod
    def read(cls, text: bytes) -> "Allowed":
        """Return the list that a file's text says.

        Raises: KeysError.
        """
        try:
            found = _READ(orjson.loads(text))
        except (orjson.JSONDecodeError, Mismatch) as wrong:
            raise KeysError(f"is not an allow-list: {wrong}") from None
        if found.version != FORMAT:
            raise KeysError(f"is of version {found.version}, not {FORMAT}")
        return cls(found.server, found.allowed)

    def text(self) -> bytes:
        """Return the list as its file's text."""
        value = _File(FORMAT, self.server, self.entries)
        return orjson.dumps(value, option=orjson.OPT_INDENT_2) + b"\n"

    @property
    def keys(self) -> frozenset[str]:
        """Every public key on the list."""
        return frozenset(self._owners)

    def owner(self, key: str) -> Peer | None:
        """Return whose key it is, or None if it is not on the list."""
        return self._owners.get(key)

    def hosts_without_key(self, peers: Iterable[Peer]) -> set[str]:
        """Return those of some peers that are hosts of which no key is on the list."""
        left = {entry.name for entry in self.entries if entry.role == "host"}
        return {peer.name for peer in peers if peer.role == "host"} - left

    def find(self, name: str, role: Role | None = None) -> Entry:
        """Return the entry of a name, which a role tells apart where a host and a client share it.

        Raises: KeysError if there is none, or there are two.
        """
        found = [each for each in self.entries if each.name == name and role in {None, each.role}]
        if len(found) == 1:
            return found[0]
        if found:
            raise KeysError(f"{name!r} is a host and a client: say which with --role")
        known = ", ".join(f"{each.role} {each.name}" for each in self.entries)
        raise KeysError(f"no {role or 'key of'} {name!r} on the list; there are: {known or 'none'}")

    def add(self, entry: Entry) -> "Allowed":
        """Return the list with an entry more. Raises: KeysError if its name is taken."""
        return replace(self, entries=(*self.entries, entry))

    def put(self, entry: Entry) -> "Allowed":
        """Return the list with this in place of the entry of its name and role."""
        entries = [
            entry if (each.name, each.role) == (entry.name, entry.role) else each
            for each in self.entries
        ]
        return replace(self, entries=tuple(each for each in entries if each.keys))


def decide(allowed: Allowed, domain: Domain, mechanism: str, key: str) -> tuple[bool, str]:
    """Return whether a handshake may go on, and why not in a word or two."""
    if mechanism != "CURVE":
        return False, "no key"
    peer = allowed.owner(key)
    if peer is None:
        return False, "unknown key"
    if domain.startswith(WORK):
        enters = peer == Peer(domain.removeprefix(WORK), "host")
    else:
        enters = peer.role in MAY_ENTER.get(domain, frozenset())
    return enters, "" if enters else f"{peer.role} key"


def domain_of_work(host: str) -> Domain:
    """Return the domain of a pipe that carries work to a worker on a host."""
    return f"{WORK}{host}"


def owns(peer: Peer, client_id: str) -> bool:
    """Return whether a client's key may speak under this client_id."""
    return (
        peer.role == "operator" or client_id == peer.name or client_id.startswith(f"{peer.name}-")
    )


def revoked(before: Allowed, after: Allowed) -> dict[str, Peer]:
    """Return the keys that are no more on the list, or not with the same owner, with their old."""
    return {
        key: peer
        for key in before.keys
        if (peer := before.owner(key)) is not None and after.owner(key) != peer
    }


def _expect_key(key: str, name: str) -> None:
    if not Z85_KEY.fullmatch(key):
        raise KeysError(f"a key of {name!r} is not 40 characters of Z85")
