"""The end of a call into a sandbox, in the moments in which several things happen at once."""

import asyncio
import socket
import time

import pytest

from engine.errors import BoundaryError
from nodes.sandboxes.entrance import _ended

S = 60.0


def ended(timeout_s: float, *, block_s: float = 0.0, stop: bool = False) -> tuple[int, bool]:
    """Return what is made of a program that reports 7 while the loop stands still for `block_s`."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.settimeout(0)

    def report() -> None:
        time.sleep(block_s)
        if stop:
            ours.send(b"K")  # which nobody reads any more
        theirs.send(b"S7")
        theirs.close()

    async def on_stage() -> tuple[int, bool]:
        asyncio.get_running_loop().call_soon(report)
        return await _ended(ours, timeout_s)

    try:
        return asyncio.run(on_stage())
    finally:
        ours.close()


def test_a_program_that_ends_while_it_is_being_stopped_has_its_status() -> None:
    assert ended(S, stop=True) == (7, False)


def test_a_report_that_comes_with_the_timeout_is_not_lost() -> None:
    code, _ = ended(0.05, block_s=0.1)
    assert code == 7


def test_an_end_without_a_report_is_an_error() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.settimeout(0)
    theirs.close()
    with ours, pytest.raises(BoundaryError, match="the sandbox ended"):
        asyncio.run(_ended(ours, S))
