"""topology.yaml: what is read, what is refused and how, and what follows from it."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from engine import topology as records
from engine.errors import TopologyError
from engine.topology import Host, Placement, Topology, fields, load, resolved, resolved_yaml
from engine.topology import schema as topology_schema
from engine.topology.shapes import Derived, Required

ROOT = Path(__file__).parents[2]
MINIMAL = "version: 1\nrun_dir: /tmp/r\nstages:\n  - name: run\n"
RICH = """\
version: 1
name: rich
run_dir: /tmp/r
insecure: true
hosts:
  trainer: {address: 127.0.0.1}
  sandboxes: {address: 127.0.0.2, memory_bytes: 64GiB}
stages:
  - {name: init, workers: {sandboxes: 4, trainer: 1}}
  - {name: run, workers: {trainer: 2}, slots: 128, handler: "package.module:function"}
  - {name: eval, workers: {sandboxes: 4}, timeout_s: 30}
router: {policy: round-robin}
backends:
  - {name: sim, kind: simulator, options: {speed: [1, 2.5, null, fast]}}
  - {name: qwen, kind: vllm, count: 2, host: sandboxes}
"""

Read = Callable[[str], Topology]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    def read_text(text: str) -> Topology:
        file = tmp_path / "topology.yaml"
        file.write_text(text, encoding="utf-8")
        return load(file)

    return read_text


@pytest.fixture
def problems(read: Read) -> Callable[[str], list[str]]:
    def refused(text: str) -> list[str]:
        with pytest.raises(TopologyError) as caught:
            read(text)
        return [f"{each.line}: {each.key}: {each.message}" for each in caught.value.problems]

    return refused


Problems = Callable[[str], list[str]]


def test_the_default_topology_loads_and_is_one_local_host_over_ipc() -> None:
    topology = load(ROOT / "topology.yaml")
    assert topology.transport == "ipc"
    assert topology.hosts == (Host("local", None, None),)
    assert [stage.name for stage in topology.stages] == ["init", "run", "eval"]
    assert [node.name for node in topology.nodes()] == [
        "broker",
        "router",
        "sim-0",
        "sandboxes-0",
        "init-0",
        "run-0",
        "eval-0",
    ]


SANDBOXES = MINIMAL + "sandboxes: "


def test_images_are_found_beside_the_file_and_each_host_with_workers_has_a_keeper(
    read: Read, tmp_path: Path
) -> None:
    topology = read(SANDBOXES + "{images: {base: images/base.sif, swe: /srv/swe}}")
    assert topology.sandboxes is not None
    assert topology.sandboxes.images == {
        "base": str(tmp_path / "images" / "base.sif"),
        "swe": "/srv/swe",
    }
    rich = read(RICH + "sandboxes: {}\n")
    keepers = [(node.name, node.host) for node in rich.nodes() if node.role == "sandboxes"]
    assert keepers == [("sandboxes-0.sandboxes", "sandboxes"), ("sandboxes-0", "trainer")]


def test_plain_processes_and_images_that_are_no_paths_are_refused(problems: Problems) -> None:
    [found] = problems(SANDBOXES + "{provider: process}")
    assert found.endswith("isolates nothing: it is allowed only with `unsafe: true`")
    [found] = problems(SANDBOXES + "{images: {base: 3}}")
    assert found == "5: sandboxes.images.base: expected the path of an image"


def test_a_minimal_file_gets_every_default(read: Read) -> None:
    topology = read(MINIMAL)
    (stage,) = topology.stages
    assert stage.workers == (Placement("local", 1),)
    assert (stage.slots, stage.ready, stage.attempts) == (64, 64, 3)
    assert stage.memory_bytes == 256 * 2**20
    assert topology.limits.bytes == 16 * 2**30
    assert (topology.durability, topology.log_level) == ("power", "info")
    assert topology.router is None


def test_run_dir_is_relative_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "t.yaml").write_text("version: 1\nrun_dir: ../x\nstages: [{name: a}]\n")
    assert load(tmp_path / "t.yaml").run_dir == tmp_path.parent / "x"


def test_a_lease_is_three_heartbeats_unless_it_is_given(read: Read) -> None:
    assert read(MINIMAL + "timeouts: {heartbeat_s: 5}").timeouts.lease_s == 15
    assert read(MINIMAL + "timeouts: {heartbeat_s: 1, lease_s: 9}").timeouts.lease_s == 9


def test_a_bare_number_of_workers_is_meant_for_every_host(read: Read) -> None:
    topology = read(
        "version: 1\nrun_dir: /tmp/r\nhosts: {a: {}, b: {}}\nstages: [{name: s, workers: 2}]"
    )
    assert topology.stage("s").workers == (Placement("a", 2), Placement("b", 2))


def test_ready_is_the_slots_on_the_host_with_the_most_workers(read: Read) -> None:
    assert read(RICH).stage("init").ready == 4 * 64


def test_ready_lets_every_slot_of_the_stage_before_be_used(read: Read) -> None:
    text = "version: 1\nstages: [{name: run, slots: 64}, {name: eval, slots: 8}, {name: last}]"
    stages = read(text).stages
    assert [(stage.name, stage.ready) for stage in stages] == [
        ("run", 64),
        ("eval", 64),
        ("last", 64),
    ]
    assert read(text.replace("slots: 8", "slots: 8, ready: 8")).stage("eval").ready == 8


@pytest.mark.parametrize(
    ("text", "count"),
    [("64MiB", 2**26), ("1.5GiB", 3 * 2**29), ("500kB", 500_000), ("2 GB", 2 * 10**9)],
)
def test_quantities_of_bytes_have_units(read: Read, text: str, count: int) -> None:
    stages = f"stages: [{{name: a, memory_bytes: {text}}}]"
    topology = read(f"version: 1\nrun_dir: /tmp/r\nlimits: {{message_bytes: 256KiB}}\n{stages}")
    assert topology.stages[0].memory_bytes == count


def test_ipc_endpoints_are_files_in_the_socket_directory(read: Read) -> None:
    topology = read(MINIMAL + "router: {}")
    assert topology.endpoint("front") == "ipc:///tmp/r/s/front"
    assert topology.endpoint("router_backends") == "ipc:///tmp/r/s/router_backends"
    assert topology.worker_endpoint("run-0", "0123abcd") == "ipc:///tmp/r/s/w-run-0-0123abcd"


def test_tcp_endpoints_count_up_from_the_first_port(read: Read) -> None:
    topology = read(RICH)
    assert topology.endpoint("front") == "tcp://127.0.0.1:5570"
    assert topology.endpoint("events") == "tcp://127.0.0.1:5573"
    assert topology.endpoint("router_backends") == "tcp://127.0.0.1:5581"
    assert topology.worker_endpoint("run-0", "0123abcd") == "tcp://127.0.0.1:*"


def test_an_ipv6_address_is_put_into_brackets(read: Read) -> None:
    topology = read(MINIMAL + "insecure: true\nhosts: {a: {address: '::1'}}")
    assert topology.endpoint("control") == "tcp://[::1]:5571"


def test_an_unknown_edge_is_refused_and_a_router_edge_needs_a_router(read: Read) -> None:
    with pytest.raises(ValueError, match="the edges are front, control"):
        read(MINIMAL).endpoint("back")
    with pytest.raises(ValueError, match="needs a router"):
        read(MINIMAL).endpoint("router")


def test_workers_are_counted_on_each_host_and_named_by_it_away_from_the_brokers(read: Read) -> None:
    topology = read(RICH)
    assert [node.name for node in topology.nodes("trainer")] == [
        "broker",
        "router",
        "sim-0",
        "init-0",
        "run-0",
        "run-1",
    ]
    elsewhere = {node.name for node in topology.nodes("sandboxes")}
    assert {"init-3.sandboxes", "eval-0.sandboxes"} < elsewhere
    assert len(topology.nodes()) == 1 + 1 + 1 + 2 + 5 + 2 + 4
    assert topology.node("qwen-1").role == "backend"
    with pytest.raises(KeyError):
        topology.nodes("nowhere")


def test_all_problems_are_reported_at_once_in_the_order_of_lines(problems: Problems) -> None:
    found = problems(
        "version: 1\nnmae: x\ndurability: powr\nstages:\n  - name: run\n    slots: many\n"
        "timeouts: {heartbeat_s: 4, lease_s: 6}\n"
    )
    assert [line.partition(" ")[0] for line in found] == ["2:", "3:", "6:", "7:"]
    assert found[0].startswith('2: nmae: unknown key; did you mean "name"?; allowed: version,')
    assert found[1].endswith("got the text 'powr'; did you mean \"power\"?")
    assert found[2] == (
        "6: stages[0].slots: expected a whole number from 1 to 65536, got the text 'many'"
    )
    assert "less than three heartbeats (12)" in found[3]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("stages: [", "not YAML"),
        ("1: 2", "a key must be text: quote '1'"),
        ("name: !!python/name:os.system x", "name: the tag "),
        ("name: &a x\nrun_dir: *a", "run_dir: aliases are not allowed"),
        ("backends: &a [*a]", "backends[0]: aliases are not allowed"),
        ("stages: []", "stages: expected a list of at least 1, got an empty list"),
        ("stages: [{slots: 2}]", "stages[0].name: missing"),
        ("stages: [{name: Run}]", "stages[0].name: expected a name of 1 to 24 characters"),
        ("stages: [{name: a}, {name: a}]", "stages[1].name: 'a' is the name of stages[0] already"),
        ("stages: [{name: a, slots: 0}]", "from 1 to 65536, got the number 0"),
        ("stages: [{name: a, workers: {lcal: 1}}]", "no host 'lcal'; did you mean \"local\"?"),
        ("stages: [{name: a, workers: {}}]", "got an empty mapping"),
        ("stages: [{name: a, workers: {local: x}}]", "stages[0].workers.local: expected a whole"),
        ("stages: [{name: a, timeout_s: .inf}]", "expected seconds from 0.1 to 2592000"),
        ("stages: [{name: a, handler: a.b}]", "expected package.module:function"),
        ("stages: [{name: a, memory_bytes: 1MiB}]", "1MiB cannot hold limits.message_bytes, 64MiB"),
        ("limits: {memory_bytes: 32MiB}", "32MiB cannot hold limits.message_bytes, 64MiB"),
        ("limits: {bytes: 32MiB}", "limits.bytes: 32MiB cannot hold limits.message_bytes"),
        ("limits: {rollouts: 8}", "limits.rollouts: 8 cannot hold limits.group, 1024"),
        ("limits: {bytes: 64Mib}", "expected bytes, such as 64MiB"),
        ("limits: {bytes: 0.3B}", "expected bytes, such as 64MiB"),
        ("hosts: {}", "hosts: expected a mapping, got an empty mapping"),
        ("hosts: {a: {memory_bytes: 600MiB}}", "cannot hold the broker's and the workers'"),
        ("hosts: {a: {address: 10.0.0.1}}", "10.0.0.1 is not loopback: plain TCP is allowed only"),
        ("hosts: {a: {address: 127.0.0.1}}", "plain TCP is allowed only on loopback with `insec"),
        ("hosts: {a: {address: 127.0.0.1}, b: {}}", "none is given for b"),
        ("broker: {host: elsewhere}", "broker.host: no host 'elsewhere'; hosts: local"),
        ("router: {policy: stiky}", "expected one of sticky-least-loaded, round-robin"),
        ("backends: [{name: a, kind: simulator}]", "backends need a router"),
        ("run_dir: /" + "x" * 100, "bytes long, and the limit is 107: set a shorter run_dir"),
        ("run_dir: ~/x", "a path that does not begin with ~"),
        ("run_dir: '~/x'", "a path that does not begin with ~"),
        ('name: "\\ud800"', "name: not a valid str"),
        ("name: 0x" + "f" * 6000, "name: not a valid int"),
        ("name: !!int ''", "name: not a valid int"),
        ('name: "\\UFFFFFFFF"', "not YAML"),
    ],
)
def test_a_mistake_is_named(problems: Problems, text: str, problem: str) -> None:
    stages = "" if "stages" in text else "stages: [{name: run}]\n"
    assert any(problem in line for line in problems(f"version: 1\n{stages}{text}\n"))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "version: missing"),
        ("- 1", "expected a mapping, got a list"),
        ("version: 2", "version: expected 1, got the number 2"),
        ("version: true", "version: expected 1, got true"),
        ("version: 1\nversion: 1", "2: version: given twice, first in line 1"),
        ("[" * 1000, "nested too deeply"),
        ("version: 1\nname: [", "not YAML"),
    ],
)
def test_a_file_that_is_no_topology_at_all_is_named(
    problems: Problems, text: str, problem: str
) -> None:
    assert any(problem in line for line in problems(text))


def test_ports_of_router_and_broker_are_kept_apart_on_one_address(problems: Problems) -> None:
    text = RICH.replace("{policy: round-robin}", "{port: 5573}")
    assert problems(text) == ["12: router.port: overlaps the broker's ports, 5570 to 5573"]


def test_names_of_backends_and_stages_do_not_meet(problems: Problems) -> None:
    text = RICH.replace("name: sim", "name: run")
    assert problems(text) == ["14: backends[0].name: 'run' is the name of stages[1] already"]


def test_a_value_that_was_refused_breaks_no_further_rule(problems: Problems) -> None:
    text = (
        "limits: {message_bytes: lots}\nhosts: {a: {address: [1]}, b: {address: localhost}}\n"
        "insecure: true\n"
    )
    assert [line.split(": ")[1] for line in problems(MINIMAL + text)] == [
        "limits.message_bytes",
        "hosts.a.address",
    ]


def test_a_path_of_exactly_the_limit_is_accepted(read: Read) -> None:
    longest = len("/s/w-run-0-00000000")
    at_limit = "/" + "x" * (records.IPC_PATH_LIMIT_BYTES - longest - 1)
    assert read(MINIMAL.replace("/tmp/r", at_limit)).run_dir == Path(at_limit)
    with pytest.raises(TopologyError, match="would be 108 bytes long"):
        read(MINIMAL.replace("/tmp/r", at_limit + "x"))


def test_tcp_has_no_path_limit(read: Read) -> None:
    assert read(RICH.replace("/tmp/r", "/" + "x" * 200)).transport == "tcp"


def test_a_file_that_cannot_be_read_is_a_topology_error(tmp_path: Path) -> None:
    with pytest.raises(TopologyError, match=r"absent\.yaml:1: cannot be read: No such file"):
        load(tmp_path / "absent.yaml")
    with pytest.raises(TopologyError, match="cannot be read: Is a directory"):
        load(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"version: 1\nname: \xe9\n")
    with pytest.raises(TopologyError, match=r"latin\.yaml:2: not UTF-8 text"):
        load(tmp_path / "latin.yaml")


@pytest.mark.parametrize("text", [MINIMAL, RICH])
def test_the_resolved_file_loads_as_an_equal_topology(read: Read, text: str) -> None:
    topology = read(text)
    assert read(resolved_yaml(topology)) == topology
    assert read(json.dumps(resolved(topology))) == topology


def test_options_are_not_shared_between_backends_or_with_what_is_shown(read: Read) -> None:
    topology = read(RICH.replace(", options: {speed: [1, 2.5, null, fast]}", ""))
    assert topology.backends[0].options is not topology.backends[1].options
    resolved(topology)["backends"][0]["options"]["changed"] = True
    assert topology.backends[0].options == {}


def test_the_table_of_keys_names_the_fields_of_the_records() -> None:
    for section, record in (
        (fields.HOST, records.Host),
        (fields.BROKER, records.BrokerSpec),
        (fields.LIMITS, records.Limits),
        (fields.TIMEOUTS, records.Timeouts),
        (fields.STAGE, records.Stage),
        (fields.ROUTER, records.RouterSpec),
        (fields.BACKEND, records.BackendSpec),
        (fields.TOPOLOGY, records.Topology),
    ):
        names = {field.name for field in dataclasses.fields(record)} - {"path"}
        table = {field.name for field in section.fields} - {"version"}
        assert names - table <= {"name"}, section.name
        assert table <= names, section.name


def test_every_default_is_justified() -> None:
    for section in fields.SECTIONS:
        for field in section.fields:
            if not isinstance(field.default, Derived | Required):
                assert field.why, f"{section.name}.{field.name}"


def test_the_committed_schema_and_reference_are_current() -> None:
    remedy = "run: python -m engine.topology.schema"
    schema = topology_schema.SCHEMA_FILE.read_text(encoding="utf-8")
    page = topology_schema.REFERENCE_FILE.read_text(encoding="utf-8")
    assert schema == topology_schema.schema_text(), remedy
    assert page == topology_schema.with_tables(page), remedy


def test_the_schema_takes_the_default_topology_and_refuses_a_bad_one() -> None:
    schema = topology_schema.json_schema()
    jsonschema.Draft7Validator.check_schema(schema)
    good = yaml.safe_load((ROOT / "topology.yaml").read_text(encoding="utf-8"))
    jsonschema.validate(good, schema)
    for bad in (
        {**good, "nmae": "x"},
        {**good, "durability": "powr"},
        {**good, "stages": []},
        {**good, "limits": {"bytes": "lots"}},
        {key: good[key] for key in good if key != "version"},
    ):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(bad, schema)


def test_a_page_without_markers_is_refused() -> None:
    with pytest.raises(ValueError, match="keys: topology"):
        topology_schema.with_tables("# A page\n")


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["1MiB", "local", "trainer", "run", "a:b", "127.0.0.1", "power", 0, 1, 5570]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=4,
)


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    children = value.items() if isinstance(value, dict) else []
    children = enumerate(value) if isinstance(value, list) else children
    return [at, *(place for key, child in children for place in places(child, (*at, key)))]


def replaced(value: Any, place: tuple[Any, ...], change: Callable[[Any, Any], None]) -> Any:
    whole = json.loads(json.dumps(value))
    parent = whole
    for step in place[:-1]:
        parent = parent[step]
    change(parent, place[-1])
    return whole


def _renamed(value: Any) -> Callable[[Any, Any], None]:
    def change(parent: Any, key: Any) -> None:
        moved = parent.pop(key)
        if isinstance(parent, dict):
            parent[str(value)] = moved

    return change


def _set(value: Any) -> Callable[[Any, Any], None]:
    return lambda parent, key: parent.__setitem__(key, value)


def _removed(_value: Any) -> Callable[[Any, Any], None]:
    return lambda parent, key: parent.pop(key, None) if isinstance(parent, dict) else None


CHANGES = {"set": _set, "remove": _removed, "rename": _renamed}


def loaded_or_refused(file: Path) -> Topology | None:
    try:
        return load(file)
    except TopologyError as error:
        lines = len(file.read_text(encoding="utf-8", errors="replace").splitlines()) + 1
        refused = error.problems
    assert refused
    assert all(1 <= problem.line <= lines for problem in refused)
    return None


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_changed_key_is_accepted_consistently_or_refused_and_never_crashes(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    plain = yaml.safe_load(data.draw(st.sampled_from([MINIMAL, RICH])))
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.sampled_from(places(plain)[1:] or [("version",)]))
        value, kind = data.draw(JSON), data.draw(st.sampled_from(["set", "remove", "rename"]))
        plain = replaced(plain, place, CHANGES[kind](value))
    file = tmp_path_factory.getbasetemp() / "changed.yaml"
    text = json.dumps(plain)
    file.write_text(text, encoding="utf-8")
    topology = loaded_or_refused(file)
    if topology is not None:
        jsonschema.validate(yaml.safe_load(text), topology_schema.json_schema())
        file.write_text(resolved_yaml(topology), encoding="utf-8")
        assert load(file) == topology


@settings(max_examples=60, deadline=None)
@given(
    where=st.integers(0, len(RICH)),
    length=st.integers(0, 12),
    new=st.text(max_size=6) | st.sampled_from(["*a", "&a ", "!!int ", "<<", "? ", "\n- ", "\t"]),
)
def test_spliced_text_never_crashes(
    where: int, length: int, new: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = tmp_path_factory.getbasetemp() / "spliced.yaml"
    text = RICH[:where] + new + RICH[where + length :]
    file.write_bytes(text.encode("utf-8", "surrogatepass"))
    loaded_or_refused(file)
