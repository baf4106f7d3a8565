"""Keys on disk: made, added, rotated and revoked in one directory, and found there.

    keys/allowed.json         public: the server's key, and every allowed key with its owner
    keys/server.secret        of the broker and the router
    keys/hosts/NAME.secret    of all nodes on a host
    keys/NAME.secret          of a trainer or an operator

Job: keep that directory, and find the key that a process of a topology speaks under.
Does not know: sockets.
Invariants: secrets have mode 0600, the directory 0700; files are replaced whole, and the list last,
so that a key on the list has its secret. Nothing here is needed twice: each machine gets a copy of
the list and of the secrets that are its own.
"""

import fcntl
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import zmq

from ..errors import KeysError
from ..files import write_whole
from ..topology import Topology, load
from .allowed import NAME, Allowed, Domain, Entry, Peer, Role
from .curve import LIST_NAME, OwnKey, ServerKey, read_list, read_secret

SERVER = "server"
OPERATOR = "operator"
HOSTS = "hosts"
KEY_VARIABLE = "ROLLMQ_KEY"


@dataclass(frozen=True, slots=True)
class KeyStore:
    """A directory of keys. Every method that changes it raises KeysError or OSError."""

    directory: Path

    def make(self, hosts: Iterable[str]) -> Allowed:
        """Make the directory with a server key, one for each host, and one operator."""
        if (self.directory / LIST_NAME).exists():
            raise KeysError(f"{self.directory} has keys already: add to them, or remove it")
        for directory in (self.directory, self.directory / HOSTS):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            directory.chmod(0o700)
        entries = [self._fresh(name, "host") for name in hosts]
        entries.append(self._fresh(OPERATOR, "operator"))
        allowed = Allowed(_new_pair(self.directory / f"{SERVER}.secret"), tuple(entries))
        self._write(allowed)
        return allowed

    def add(self, name: str, role: Role) -> None:
        """Add a name with a fresh key."""
        if not NAME.fullmatch(name) or (role != "host" and name == SERVER):
            raise KeysError(f"{name!r} cannot be a key's name: letters, digits, `.`, `_` and `-`")
        with self._changing() as allowed:
            taken = {e.name for e in allowed.entries if (e.role == "host") == (role == "host")}
            if name in taken:
                raise KeysError(f"there is a key of {name!r}: rotate it, or choose another name")
            self._write(allowed.add(self._fresh(name, role)))

    def rotate(self, name: str, role: Role | None = None) -> None:
        """Give a name a fresh key; those before stay allowed until they are revoked."""
        with self._changing() as allowed:
            entry = allowed.find(name, role)
            fresh = self._fresh(name, entry.role, draft=True)
            self._write(allowed.put(replace(entry, keys=(*entry.keys, *fresh.keys))))
            path = self.secret(entry.name, entry.role)
            path.with_name(f"{path.name}.new").replace(path)

    def revoke(self, name: str, role: Role | None = None, *, old: bool = False) -> tuple[str, ...]:
        """Allow a name's keys no more, or with `old` all but the newest; return those."""
        with self._changing() as allowed:
            entry = allowed.find(name, role)
            kept = entry.keys[-1:] if old else ()
            self._write(allowed.put(replace(entry, keys=kept)))
            if not kept:
                self.secret(entry.name, entry.role).unlink(missing_ok=True)
            return entry.keys[: len(entry.keys) - len(kept)]

    def allowed(self) -> Allowed:
        """Return the allow-list. Raises: KeysError."""
        return read_list(self.directory)

    def secret(self, name: str, role: Role) -> Path:
        """Return where a key's secret is, or would be."""
        place = self.directory / HOSTS if role == "host" else self.directory
        return place / f"{name}.secret"

    def own(self, name: str, role: Role) -> OwnKey:
        """Return a key to connect with."""
        return OwnKey(Peer(name, role), self.secret(name, role), self.directory)

    def held(self) -> list[Peer]:
        """Return the clients whose secrets are here. Raises: KeysError."""
        return [
            Peer(entry.name, entry.role)
            for entry in self.allowed().entries
            if entry.role != "host" and self.secret(entry.name, entry.role).exists()
        ]

    def _fresh(self, name: str, role: Role, *, draft: bool = False) -> Entry:
        path = self.secret(name, role)
        return Entry(
            name, role, (_new_pair(path.with_name(f"{path.name}.new") if draft else path),)
        )

    def _write(self, allowed: Allowed) -> None:
        write_whole(self.directory / LIST_NAME, allowed.text(), mode=0o644, sync=True)

    @contextmanager
    def _changing(self) -> Iterator[Allowed]:
        """Keep other writers out, and give the list as it is."""
        with (self.directory / ".lock").open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield self.allowed()


def server_key(topology: Topology, domain: Domain) -> ServerKey | None:
    """Return what the broker's and the router's sockets bind with; None without keys or over IPC.

    Raises: KeysError.
    """
    store = _store(topology)
    if store is None:
        return None
    secret = read_secret(store.directory / f"{SERVER}.secret")
    if zmq.curve_public(secret.encode()).decode() != store.allowed().server:
        raise KeysError(f"{store.directory}: {SERVER}.secret and {LIST_NAME} are of different keys")
    return ServerKey(secret, domain)


def node_key(topology: Topology, host: str) -> OwnKey | None:
    """Return the key of a host's nodes; None without keys or over IPC."""
    store = _store(topology)
    return store.own(host, "host") if store else None


def client_key(topology: Topology, name: str | None = None) -> OwnKey | None:
    """Return the key of a client: that of a name, or of ROLLMQ_KEY, or the only trainer's here.

    Where no trainer's secret is, it is the operator's.

    Raises: KeysError if none is there, or more than one may be meant.
    """
    return _client_key(topology, name, ("trainer", "operator"))


def operator_name(where: str | Path) -> str | None:
    """Return whose key the commands of an operator use: an operator's before any trainer's.

    where: a topology file.

    Raises: TopologyError, KeysError.
    """
    key = _client_key(load(where), None, ("operator", "trainer"))
    return key.peer.name if key else None


def _client_key(topology: Topology, name: str | None, order: tuple[Role, ...]) -> OwnKey | None:
    store = _store(topology)
    if store is None:
        return None
    wanted = name or os.environ.get(KEY_VARIABLE)
    held = store.held()
    for role in order:
        found = [each for each in held if each.name == wanted or (not wanted and each.role == role)]
        if len(found) == 1:
            return store.own(found[0].name, found[0].role)
        if found:
            several = ", ".join(each.name for each in found)
            why = f"several keys of a {role}: {several}"
            raise KeysError(f"{store.directory} has {why}; choose with {KEY_VARIABLE} or key=")
    missing = f"no secret of a client {wanted!r}" if wanted else "no secret of a client"
    raise KeysError(f"{store.directory} has {missing}: `rollmq keys add` makes one")


def _store(topology: Topology) -> KeyStore | None:
    if topology.keys is None or topology.transport == "ipc":
        return None
    return KeyStore(topology.keys)


def _new_pair(path: Path) -> str:
    """Write a fresh secret to a file; return its public key."""
    public, secret = zmq.curve_keypair()
    path.unlink(missing_ok=True)
    write_whole(path, secret + b"\n", mode=0o600, sync=True)
    return public.decode()
