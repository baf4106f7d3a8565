"""CURVE keys on ZeroMQ sockets: one side of a connection each.

Job: set a socket's security options before it binds or connects.
Does not know: who is allowed (the allow-list does, by ZAP).
Invariants: a binding socket without a ZAP handler takes nobody; a secret is in memory only while
it is handed to ZeroMQ, or as long as the binding process lives.
"""

from dataclasses import dataclass
from pathlib import Path

import zmq

from ..errors import KeysError
from .allowed import Z85_KEY, Allowed, Domain, Peer

LIST_NAME = "allowed.json"


@dataclass(frozen=True, slots=True, repr=False)
class ServerKey:
    """The binding side: the server's secret in Z85, and the domain that ZAP is asked about."""

    secret: str
    domain: Domain

    def apply(self, socket: "zmq.Socket[bytes]") -> None:
        """Have a socket take only peers that ZAP allows."""
        socket.setsockopt(zmq.CURVE_SERVER, 1)
        socket.setsockopt(zmq.CURVE_SECRETKEY, self.secret.encode())
        socket.setsockopt(zmq.ZAP_DOMAIN, self.domain.encode())
        socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)


@dataclass(frozen=True, slots=True)
class OwnKey:
    """The connecting side: whose key, and the files that it is read from at every connection."""

    peer: Peer
    secret: Path
    directory: Path

    def apply(self, socket: "zmq.Socket[bytes]") -> None:
        """Have a socket connect to our server only, under this key.

        Raises: KeysError if a file is missing, readable by others, or not what it should be.
        """
        secret = read_secret(self.secret).encode()
        server = read_list(self.directory).server
        socket.setsockopt(zmq.CURVE_SERVERKEY, server.encode())
        socket.setsockopt(zmq.CURVE_PUBLICKEY, zmq.curve_public(secret))
        socket.setsockopt(zmq.CURVE_SECRETKEY, secret)

    def version(self) -> tuple[int, ...]:
        """Return what changes when the secret's file is replaced; empty if there is none."""
        try:
            found = self.secret.stat()
        except OSError:
            return ()
        return (found.st_ino, found.st_mtime_ns)


def read_secret(path: Path) -> str:
    """Return a secret key in Z85 from its file.

    Raises: KeysError if it is missing, readable by others, or no key.
    """
    _expect_closed(path, 0o077, "may be read by others: chmod 600 it, and rotate the key")
    secret = _text(path).strip()
    if not Z85_KEY.fullmatch(secret):
        raise KeysError(f"{path} is not a secret key: expected 40 characters of Z85")
    return secret


def read_list(directory: Path) -> Allowed:
    """Return the allow-list of a directory of keys.

    Raises: KeysError if it is missing, can be written by others, or is not one.
    """
    path = directory / LIST_NAME
    _expect_closed(path, 0o022, "may be written by others: chmod 644 it, and check what it says")
    try:
        return Allowed.read(_text(path).encode())
    except KeysError as wrong:
        raise KeysError(f"{path}: {wrong}") from None


def _expect_closed(path: Path, mask: int, why: str) -> None:
    try:
        mode = path.stat().st_mode
    except OSError as wrong:
        raise KeysError(f"{path} cannot be read: {wrong.strerror}") from None
    if mode & mask:
        raise KeysError(f"{path} {why}")


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError) as wrong:
        raise KeysError(f"{path} cannot be read: {wrong}") from None
