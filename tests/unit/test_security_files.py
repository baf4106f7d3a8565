"""Keys on disk: modes, rotation, revocation, and whose key a process finds."""

from pathlib import Path

import pytest
import zmq

from engine.cli import main
from engine.errors import KeysError
from engine.security import KeyStore, client_key, node_key, operator_name, server_key
from engine.security.curve import read_secret
from engine.topology import Topology, load

TEXT = """\
version: 1
keys: keys
hosts: {a: {address: 10.0.0.1}, b: {address: 10.0.0.2}}
stages: [{name: run}]
"""


@pytest.fixture
def topology(tmp_path: Path) -> Topology:
    (tmp_path / "t.yaml").write_text(TEXT)
    return load(tmp_path / "t.yaml")


@pytest.fixture
def keys(topology: Topology) -> KeyStore:
    assert topology.keys is not None
    store = KeyStore(topology.keys)
    store.make(host.name for host in topology.hosts)
    return store


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_a_fresh_directory_has_the_server_each_host_and_an_operator(keys: KeyStore) -> None:
    found = {(entry.name, entry.role) for entry in keys.allowed().entries}
    assert found == {("a", "host"), ("b", "host"), ("operator", "operator")}
    secrets = sorted(keys.directory.rglob("*.secret"))
    assert len(secrets) == 4
    assert {mode(path) for path in secrets} == {0o600}
    assert mode(keys.directory) == mode(keys.directory / "hosts") == 0o700
    for entry in keys.allowed().entries:
        secret = read_secret(keys.secret(entry.name, entry.role))
        assert zmq.curve_public(secret.encode()).decode() == entry.keys[0]
    with pytest.raises(KeysError, match="has keys already"):
        keys.make(["a"])


@pytest.mark.parametrize("bits", [0o640, 0o604, 0o620, 0o666])
def test_a_secret_that_others_may_touch_is_refused(keys: KeyStore, bits: int) -> None:
    path = keys.secret("a", "host")
    path.chmod(bits)
    with pytest.raises(KeysError, match=r"a\.secret may be read by others: chmod 600"):
        read_secret(path)


def test_a_list_that_others_may_write_is_refused(keys: KeyStore) -> None:
    (keys.directory / "allowed.json").chmod(0o664)
    with pytest.raises(KeysError, match="may be written by others"):
        keys.allowed()


@pytest.mark.parametrize("text", ["", "x" * 40 + "y", "\xff" * 40, "é" * 40])
def test_what_is_no_secret_is_refused(keys: KeyStore, text: str) -> None:
    path = keys.secret("a", "host")
    path.write_text(text, encoding="utf-8")
    with pytest.raises(KeysError, match=r"a\.secret"):
        read_secret(path)


def test_rotation_keeps_the_old_key_until_it_is_revoked(keys: KeyStore) -> None:
    (before,) = keys.allowed().find("a").keys
    keys.rotate("a")
    old, new = keys.allowed().find("a").keys
    secret = read_secret(keys.secret("a", "host"))
    assert (old, new) == (before, zmq.curve_public(secret.encode()).decode())
    assert keys.revoke("a", old=True) == (old,)
    assert keys.allowed().find("a").keys == (new,)
    assert keys.revoke("a", old=True) == ()
    assert keys.revoke("a") == (new,)
    assert not keys.secret("a", "host").exists()
    with pytest.raises(KeysError, match="no key of 'a'"):
        keys.revoke("a")
    keys.add("a", "host")
    assert not list(keys.directory.rglob("*.new")) + list(keys.directory.rglob("*.tmp"))


@pytest.mark.parametrize("name", ["server", "../x", "", "a b", "x\n", "x" * 64, ".x", "$(x)"])
def test_some_names_are_no_names(keys: KeyStore, name: str) -> None:
    with pytest.raises(KeysError, match="cannot be a key's name"):
        keys.add(name, "trainer")


def test_a_name_is_given_once_to_a_client_and_once_to_a_host(keys: KeyStore) -> None:
    keys.add("a", "trainer")
    for role in ("trainer", "operator", "host"):
        with pytest.raises(KeysError, match="there is a key of 'a'"):
            keys.add("a", role)  # type: ignore[arg-type]


def test_a_client_finds_its_key(
    topology: Topology, keys: KeyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def found(name: str | None = None) -> str:
        key = client_key(topology, name)
        assert key is not None
        return key.peer.name

    monkeypatch.delenv("ROLLMQ_KEY", raising=False)
    assert found() == "operator"
    keys.add("t", "trainer")
    assert (found(), operator_name(topology.path)) == ("t", "operator")
    keys.add("u", "trainer")
    with pytest.raises(KeysError, match="several keys of a trainer: t, u"):
        found()
    assert found("u") == "u"
    monkeypatch.setenv("ROLLMQ_KEY", "t")
    assert (found(), found("u"), operator_name(topology.path)) == ("t", "u", "t")
    with pytest.raises(KeysError, match="no secret of a client 'x'"):
        found("x")


def test_a_host_without_its_secret_is_found_when_it_is_used(
    topology: Topology, keys: KeyStore
) -> None:
    key = node_key(topology, "b")
    assert key is not None
    keys.secret("b", "host").unlink()
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    with (
        context,
        context.socket(zmq.DEALER) as socket,
        pytest.raises(KeysError, match=r"b\.secret"),
    ):
        key.apply(socket)


def test_a_server_secret_of_another_directory_is_refused(
    topology: Topology, keys: KeyStore, tmp_path: Path
) -> None:
    assert server_key(topology, "front") is not None
    other = KeyStore(tmp_path / "other")
    other.make([])
    (other.directory / "server.secret").replace(keys.directory / "server.secret")
    with pytest.raises(KeysError, match="are of different keys"):
        server_key(topology, "front")


def test_ipc_needs_no_keys(tmp_path: Path) -> None:
    (tmp_path / "t.yaml").write_text("version: 1\nkeys: keys\nstages: [{name: run}]")
    topology = load(tmp_path / "t.yaml")
    assert node_key(topology, "local") is None
    assert client_key(topology) is None
    assert server_key(topology, "front") is None


def test_the_command_makes_and_changes_keys(
    topology: Topology, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = str(topology.keys)
    assert main(["keys", "new", directory, "--topology", str(topology.path)]) == 0
    assert main(["keys", "add", directory, "t", "--role", "trainer"]) == 0
    assert main(["keys", "rotate", directory, "t"]) == 0
    assert main(["keys", "revoke", directory, "t", "--old"]) == 0
    assert main(["keys", "list", directory]) == 0
    said = capsys.readouterr()
    assert "trainer" in said.out
    assert main(["keys", "revoke", directory, "t", "--old"]) == 1
    assert "has one key" in capsys.readouterr().err
    assert main(["keys", "revoke", directory, "t"]) == 0
    assert main(["keys", "list", directory, "--json"]) == 0
    told = capsys.readouterr().out
    assert '"role":"operator"' in told
    for path in Path(directory).rglob("*.secret"):
        assert path.read_text().strip() not in said.out + told
