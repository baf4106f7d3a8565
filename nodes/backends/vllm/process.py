"""A backend that serves a real model: one vLLM server, existing or started here.

    python -m nodes.backends.vllm --topology topology.yaml --name vllm-0

It speaks ZeroMQ to the router and HTTP to the server, token IDs on both sides.

Job: bring the server up, check it, join the router; when the server is gone, leave at once, so that
its sessions move, and begin again.
Does not know: tasks, text and tokenizers.
Invariants: the router hears of a server only after a probe was answered as promised. A server that
cannot be used at the first start ends this process with the reason; later ones are tried again.
A server that lost the weights of the last update gets them again before it is offered, where their
source is known. SIGTERM: no new session, what runs ends within timeouts.drain_s, goodbye, exit 0.
"""

import argparse
import asyncio
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import zmq

from engine.errors import NodeFailed, RollmqError
from engine.logs import configure, get_logger
from engine.presence import Presence
from engine.process import die_with_parent
from engine.reread import reread_on_hangup
from engine.sockets import boot_id
from engine.topology import Topology, load

from ..link import Offer
from ..link_async import AsyncRouterLink
from .http import HttpFailed, NotServing, Unreachable, VllmHttp
from .options import api_key, read_options
from .server import OwnServer
from .serving import Counts, Serving, Site
from .updates import NotDone, Weights
from .updates import load as load_weights

LOOK_S = 0.25  # between two looks at a server that starts
AGAIN_S = 2.0  # after a server that was no use
BEATS = 4  # turns in a heartbeat
LONGEST_MODEL = 200
USELESS = (NodeFailed, Unreachable, HttpFailed, TimeoutError, ValueError, NotDone)


class Vllm:
    """The process: one server, one boot at the router after the other."""

    def __init__(self, topology: Topology, node: str) -> None:
        self._topology = topology
        self._node = topology.node(node)
        self._spec = topology.backend(self._node.spec)
        self._options = read_options(self._spec.options)
        self._api_key = api_key(self._options, os.environ)
        self._own = OwnServer(topology, self._node, self._options) if self._options.model else None
        self._context = zmq.Context()
        self._weights = Weights()
        self._counts = Counts()
        self._lives = 0
        self._presence: Presence | None = None
        self._stopping = asyncio.Event()
        self._log = get_logger()

    async def run(self) -> int:
        """Serve until stopped, and return the exit status."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stopping.set)
        try:
            while not self._stopping.is_set():
                await self._live()
        except NodeFailed as wrong:
            self._log.error("no server to serve with", reason=str(wrong))
            return 1
        finally:
            if self._own is not None:
                await self._own.stop()
            if self._presence is not None:
                self._presence.close()
            self._context.destroy(linger=1000)
        return 0

    async def _live(self) -> None:
        """Go through one life of the server."""
        site = await self._unless_stopped()
        if site is None:
            return
        self._lives += 1
        try:
            await self._serve(site)
        finally:
            await site.http.close()
            if self._own is not None:
                await self._own.stop()

    async def _unless_stopped(self) -> Site | None:
        up = asyncio.create_task(self._up())
        stop = asyncio.create_task(self._stopping.wait())
        beats = asyncio.create_task(self._beat(None, None))
        await asyncio.wait({up, stop}, return_when=asyncio.FIRST_COMPLETED)
        for task in (stop, beats, up):
            if not task.done():
                task.cancel()
        await asyncio.gather(up, stop, beats, return_exceptions=True)
        return None if up.cancelled() else up.result()

    async def _up(self) -> Site:
        """Return a server that answers as promised; later than the first time, try for ever.

        Raises: NodeFailed if the first server does not start in time or is no use.
        """
        while True:
            url = self._options.url
            if self._own is not None:
                await self._own.start()
                url = self._own.url
            http = VllmHttp(url, self._options.request_s, self._api_key)
            try:
                return await self._checked(http)
            except asyncio.CancelledError:
                await http.close()
                raise
            except USELESS as wrong:
                await http.close()
                if not self._lives:
                    raise NodeFailed(self._with_log(str(wrong))) from None
                self._log.warning("server of no use, trying again", reason=str(wrong))
                if self._own is not None:
                    await self._own.stop()
            await asyncio.sleep(AGAIN_S)

    def _with_log(self, reason: str) -> str:
        if self._own is None:
            return reason
        return f"{reason}; {self._own.log_path} ends with:\n{self._own.last_words()}"

    async def _checked(self, http: VllmHttp) -> Site:
        await self._healthy(http)
        served = await http.served()
        software = await http.software()
        if await http.is_paused():
            self._log.warning("the server was left paused by an update that did not end")
            await http.resume()
        await http.probe(served)
        held = await http.policy_version()
        if held != self._weights.version and self._weights.source:
            self._log.info("loading weights again", policy_version=self._weights.version)
            await load_weights(http, self._weights)
        elif held != self._weights.version:
            self._weights = Weights(held)
        self._log.info(
            "server ready",
            vllm=software,
            model=served.model,
            context_tokens=served.context_tokens,
            policy_version=self._weights.version,
        )
        silence_s = self._options.silence_s
        return Site(http, served, self._node.name, self._weights, self._counts, silence_s)

    async def _healthy(self, http: VllmHttp) -> None:
        start_s = self._topology.timeouts.start_s
        give_up_at = time.monotonic() + start_s
        while True:
            try:
                await http.health()
            except (Unreachable, HttpFailed, TimeoutError) as wrong:
                if self._own is not None and self._own.has_ended:
                    raise NotServing("the server ended before it served") from None
                if time.monotonic() > give_up_at:
                    raise NotServing(f"no server within {start_s:g} s: {wrong}") from None
            else:
                return
            await asyncio.sleep(LOOK_S)

    async def _serve(self, site: Site) -> None:
        """Serve until the server is gone or this process is stopped."""
        serving = Serving(site)
        offer = Offer(site.served.model[:LONGEST_MODEL], self._spec.capacity)
        link = AsyncRouterLink(self._context, self._topology, self._node.name, offer, serving.take)
        link.policy_version = site.weights.version
        serving.attach(link)
        beats = asyncio.create_task(self._beat(link, serving))
        stop = asyncio.create_task(self._stopping.wait())
        ends: list[asyncio.Future[Any]] = [stop, serving.lost, beats]
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        if serving.lost.done():
            self._log.warning("server lost", why=serving.lost.result(), open=len(serving.tickets))
        elif self._stopping.is_set():
            link.drain()
            await serving.finish(self._topology.timeouts.drain_s)
            self._log.info("vllm backend stopped", unanswered=len(serving.tickets))
        for task in (beats, stop):
            task.cancel()
        link.close()
        await serving.close()
        found = await asyncio.gather(beats, stop, return_exceptions=True)
        for wrong in found:
            if isinstance(wrong, Exception):
                raise wrong

    async def _beat(self, link: AsyncRouterLink | None, serving: Serving | None) -> None:
        """Tell router and broker that this node is there, and what it counts."""
        while True:
            figures = self._figures(serving)
            now = time.monotonic()
            if link is not None and serving is not None:
                link.beat(now, serving.tickets, figures)
                link.turn()
                if self._presence is None:
                    boot = boot_id(self._node.name)
                    self._presence = Presence(
                        self._context, self._topology, self._node.name, boot, "backend"
                    )
            if self._presence is not None:  # from the first hello on, also while the server is away
                self._presence.beat(now, figures)
            await asyncio.sleep(self._topology.timeouts.heartbeat_s / BEATS)

    def _figures(self, serving: Serving | None) -> dict[str, float]:
        figures: dict[str, float] = {name: float(n) for name, n in asdict(self._counts).items()}
        figures["serving"] = float(serving is not None)
        figures["lives"] = float(self._lives)
        figures["policy_version"] = float(self._weights.version)
        figures["open"] = float(len(serving.tickets)) if serving is not None else 0.0
        return figures | (serving.figures if serving is not None else {})


async def serve(topology: Topology, node: str) -> int:
    """Run a backend until SIGTERM or SIGINT; return the exit status."""
    return await Vllm(topology, node).run()


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the arguments and run; return the exit status."""
    die_with_parent()
    parser = argparse.ArgumentParser(prog="nodes.backends.vllm", description="a vLLM server")
    parser.add_argument("--topology", required=True)
    parser.add_argument("--name", required=True)
    chosen = parser.parse_args(arguments)
    try:
        topology = load(chosen.topology)
        configure(chosen.name, topology.log_level)
        reread_on_hangup(chosen.topology, chosen.name)
        return asyncio.run(serve(topology, chosen.name))
    except RollmqError as wrong:
        print(wrong, file=sys.stderr)  # noqa: T201 - before there is a log
        return 2
