"""The rules of a topology that join several keys.

Job: refuse a topology whose values are each fine and do not fit together.
Does not know: YAML, or a single key's shape.
Invariants: a rule whose inputs were refused stays silent, so that one mistake is one problem.
"""

import re
from collections.abc import Iterable, Iterator
from ipaddress import ip_address
from os import fsencode
from pathlib import Path
from typing import Any

from .reader import Values, did_you_mean, show_bytes
from .records import BROKER_EDGES, IPC_PATH_LIMIT_BYTES, ROUTER_EDGES, longest_socket, placed_name
from .yaml_lines import Place, Source

FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
TCP_RULE = "plain TCP is allowed only on loopback with `insecure: true`; elsewhere give `keys`"


def apply_rules(values: Values, source: Source) -> None:
    """Check every rule; what is broken goes to `source`."""
    for rule in (
        _names_are_unique,
        _hosts_exist,
        _backends_have_a_router,
        _leases_outlive_heartbeats,
        _limits_hold_one_another,
        _stages_hold_a_message,
        _hosts_hold_their_processes,
        _addresses_agree,
        _ports_are_apart,
        _socket_paths_fit,
        _images_are_paths,
        _filters_are_functions,
        _plain_processes_are_asked_for,
    ):
        rule(values, source)


def home_host(values: Values) -> str | None:
    """Return the broker's host, which is where things go that name no host."""
    named: str | None = section(values, "broker").get("host")
    hosts = values["hosts"] or {}
    return named or next(iter(hosts), None)


def section(values: Values, name: str) -> Values:
    """Return the values of a section, or nothing of it if it was refused or left out."""
    return values[name] or {}


def _each(values: Values, name: str) -> Iterator[tuple[Place, Values]]:
    for i, item in enumerate(values[name] or ()):
        if item is not None:
            yield (name, i), item


def _names_are_unique(values: Values, source: Source) -> None:
    seen: dict[str, Place] = {}
    for kind in ("stages", "backends"):
        for place, item in _each(values, kind):
            name = item["name"]
            if name in seen:
                first = seen[name]
                message = f"{name!r} is the name of {first[0]}[{first[1]}] already"
                source.refuse((*place, "name"), message)
            elif name is not None:
                seen[name] = place


def _hosts_exist(values: Values, source: Source) -> None:
    hosts = values["hosts"]
    if hosts is None:
        return
    for place, name in _hosts_named(values):
        if name is not None and name not in hosts:
            message = f"no host {name!r}{did_you_mean(name, hosts)}; hosts: {', '.join(hosts)}"
            source.refuse(place, message)


def _hosts_named(values: Values) -> Iterator[tuple[Place, str | None]]:
    yield ("broker", "host"), section(values, "broker").get("host")
    yield ("router", "host"), section(values, "router").get("host")
    for place, backend in _each(values, "backends"):
        yield (*place, "host"), backend["host"]
    for place, stage in _each(values, "stages"):
        if isinstance(stage["workers"], dict):
            for name in stage["workers"]:
                yield (*place, "workers", name), name


def _backends_have_a_router(values: Values, source: Source) -> None:
    if values["backends"] and values["router"] is None and ("router",) not in source.refused:
        source.refuse(("backends",), "backends need a router: add `router: {}`")


def _leases_outlive_heartbeats(values: Values, source: Source) -> None:
    timeouts = section(values, "timeouts")
    heartbeat_s, lease_s = timeouts.get("heartbeat_s"), timeouts.get("lease_s")
    if heartbeat_s and lease_s and lease_s < 3 * heartbeat_s:
        message = (
            f"{lease_s:g} is less than three heartbeats ({3 * heartbeat_s:g}); "
            "leave it out to get three"
        )
        source.refuse(("timeouts", "lease_s"), message)


def _limits_hold_one_another(values: Values, source: Source) -> None:
    limits = section(values, "limits")
    for small, large in (
        ("message_bytes", "memory_bytes"),
        ("message_bytes", "bytes"),
        ("memory_bytes", "bytes"),
        ("group", "rollouts"),
    ):
        least, bound = limits.get(small), limits.get(large)
        if least is not None and bound is not None and bound < least:
            show = show_bytes if large.endswith("bytes") else str
            message = f"{show(bound)} cannot hold limits.{small}, {show(least)}"
            source.refuse(("limits", large), message)


def _stages_hold_a_message(values: Values, source: Source) -> None:
    message_bytes = section(values, "limits").get("message_bytes")
    for place, stage in _each(values, "stages"):
        held = stage["memory_bytes"]
        if message_bytes is not None and held is not None and held < message_bytes:
            message = (
                f"{show_bytes(held)} cannot hold limits.message_bytes, {show_bytes(message_bytes)}"
            )
            source.refuse((*place, "memory_bytes"), message)


def _hosts_hold_their_processes(values: Values, source: Source) -> None:
    for name, host in section(values, "hosts").items():
        room = host and host["memory_bytes"]
        needed = _memory_needed(values, name)
        if room is not None and needed > room:
            message = (
                f"{show_bytes(room)} cannot hold the broker's and the workers' memory_bytes here, "
                f"{show_bytes(needed)} together"
            )
            source.refuse(("hosts", name, "memory_bytes"), message)


def _memory_needed(values: Values, host: str) -> int:
    needed: int = 0
    if host == home_host(values):
        needed += section(values, "limits").get("memory_bytes") or 0
    for _, stage in _each(values, "stages"):
        needed += placements(stage, (host,)).get(host, 0) * (stage["memory_bytes"] or 0)
    return needed


def placements(stage: Values, hosts: Iterable[str]) -> dict[str, int]:
    """Return a stage's workers by host; a bare number is that many on every one of `hosts`."""
    workers: Any = stage["workers"]
    if isinstance(workers, dict):
        return {host: count for host, count in workers.items() if count}
    return dict.fromkeys(hosts, workers) if workers else {}


def _addresses_agree(values: Values, source: Source) -> None:
    hosts = {name: host for name, host in section(values, "hosts").items() if host}
    with_address = {
        name
        for name, host in hosts.items()
        if host["address"] or ("hosts", name, "address") in source.refused
    }
    if with_address and len(with_address) < len(hosts):
        without = ", ".join(name for name in hosts if name not in with_address)
        message = f"either every host has an address or none has; none is given for {without}"
        source.refuse(("hosts",), message)
    has_keys = values["keys"] is not None or ("keys",) in source.refused
    for name in () if has_keys else sorted(with_address):
        address = hosts[name]["address"]
        if address and not is_loopback(address):
            source.refuse(("hosts", name, "address"), f"{address} is not loopback: {TCP_RULE}")
        elif address and values["insecure"] is False:
            source.refuse(("hosts", name, "address"), TCP_RULE)


def is_loopback(address: str) -> bool:
    """Return whether an address can only be reached from this machine."""
    try:
        return ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"


def _ports_are_apart(values: Values, source: Source) -> None:
    router, broker = section(values, "router"), section(values, "broker")
    first, start = router.get("port"), broker.get("port")
    if first is None or start is None or not _share_an_address(values):
        return
    if first < start + len(BROKER_EDGES) and start < first + len(ROUTER_EDGES):
        message = f"overlaps the broker's ports, {start} to {start + len(BROKER_EDGES) - 1}"
        source.refuse(("router", "port"), message)


def _share_an_address(values: Values) -> bool:
    home = home_host(values) or ""
    router_host: str = section(values, "router").get("host") or home
    addresses = [_address(values, host) for host in (home, router_host)]
    return addresses[0] is not None and addresses[0] == addresses[1]


def _address(values: Values, host: str) -> str | None:
    address: str | None = (section(values, "hosts").get(host) or {}).get("address")
    return address


def _images_are_paths(values: Values, source: Source) -> None:
    images = section(values, "sandboxes").get("images") or {}
    for name, path in images.items():
        if not (isinstance(path, str) and path) or "\0" in path:
            source.refuse(("sandboxes", "images", name), "expected the path of an image")


def _filters_are_functions(values: Values, source: Source) -> None:
    for name, place in (values["filters"] or {}).items():
        if not (isinstance(place, str) and FUNCTION.fullmatch(place)):
            source.refuse(("filters", name), "expected a function, as package.module:function")


def _plain_processes_are_asked_for(values: Values, source: Source) -> None:
    sandboxes = section(values, "sandboxes")
    if sandboxes.get("provider") == "process" and sandboxes.get("unsafe") is False:
        message = "isolates nothing: it is allowed only with `unsafe: true`"
        source.refuse(("sandboxes", "provider"), message)


def _socket_paths_fit(values: Values, source: Source) -> None:
    hosts = section(values, "hosts").values()
    if values["run_dir"] is None or any(host and host["address"] for host in hosts):
        return
    home = home_host(values)
    workers = [
        placed_name(stage["name"], count - 1, host, home or "")
        for _, stage in _each(values, "stages")
        if stage["name"] is not None
        for host, count in placements(stage, section(values, "hosts")).items()
    ]
    path = longest_socket(Path(values["run_dir"]), workers)
    length = len(fsencode(path))
    if length > IPC_PATH_LIMIT_BYTES:
        message = (
            f"the socket {path} would be {length} bytes long, and the limit is "
            f"{IPC_PATH_LIMIT_BYTES}: set a shorter run_dir, such as /tmp/rollmq"
        )
        source.refuse(("run_dir",), message)
