"""Two processes never share an address: over IPC a second bind would steal it silently."""

import subprocess
import sys
from pathlib import Path

import pytest
import zmq

from engine.errors import NodeFailed
from engine.sockets import Bounds, bind, open_socket

BINDER = """
import sys, zmq
from engine.sockets import Bounds, bind, open_socket
socket = open_socket(zmq.Context(), zmq.ROUTER, Bounds())
bind(socket, sys.argv[1], lasting=True)
print("bound", flush=True)
sys.stdin.read()
"""


def test_an_address_that_another_process_has_is_refused_until_it_ends(short_path: Path) -> None:
    endpoint = f"ipc://{short_path}/s/front"
    holder = subprocess.Popen(
        [sys.executable, "-c", BINDER, endpoint],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "bound\n"
        socket = open_socket(context, zmq.ROUTER, Bounds())
        with pytest.raises(NodeFailed, match="front is bound by another process"):
            bind(socket, endpoint, lasting=True)
        holder.kill()
        holder.wait(10)
        assert bind(socket, endpoint, lasting=True) == endpoint
    finally:
        holder.kill()
        holder.communicate()
        context.destroy(linger=0)


def test_the_directory_of_ipc_sockets_is_closed_to_others(short_path: Path) -> None:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    try:
        socket = open_socket(context, zmq.PULL, Bounds())
        bind(socket, f"ipc://{short_path}/s/results")
        assert (short_path / "s").stat().st_mode & 0o777 == 0o700
    finally:
        context.destroy(linger=0)
