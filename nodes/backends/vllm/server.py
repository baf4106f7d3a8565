"""A vLLM server's process, if it is ours.

Job: start the server on a free loopback port with its log in the run directory, notice its end,
wait longer and longer before the next start, and stop it.
Does not know: HTTP, or what the server answers.
Invariants: nothing of a server outlives this process (`vllm_guard`). A start has a delay that
doubles while lives are short.
"""

import asyncio
import socket
import subprocess
import sys
import time

from engine.logs import get_logger
from engine.process import Backoff, child_environment, last_lines, spawn
from engine.topology import Node, Topology

from .options import HOST, Options, command, environment

STOP_S = 10.0  # more than the guard's own grace
LAST_WORDS = 8  # lines of the server's log that a failure quotes


class OwnServer:
    """A server that this process starts, and starts again."""

    def __init__(self, topology: Topology, node: Node, options: Options) -> None:
        self.log_path = topology.run_dir / "logs" / f"{node.name}-server.log"
        self.url = ""
        self._directory = topology.beside
        self._options = options
        self._environment = environment(
            options, topology.backend(node.spec), node.index, child_environment()
        )
        self._process: subprocess.Popen[bytes] | None = None
        self._started_at = 0.0
        self._backoff = Backoff(short_s=60.0, first_s=1.0, most_s=60.0)

    @property
    def has_ended(self) -> bool:
        """Whether there is no running server."""
        return self._process is None or self._process.poll() is not None

    async def start(self) -> None:
        """Start the server if none runs, after the delay that its last lives have earned.

        Raises: OSError if it cannot be started at all.
        """
        if not self.has_ended:
            return
        await asyncio.sleep(self._delay_s())
        self._spawn()
        get_logger().info("server started", url=self.url, log=str(self.log_path))

    async def stop(self) -> None:
        """Stop the server; it is killed if it takes too long."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            await asyncio.to_thread(process.wait, STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def last_words(self) -> str:
        """Return the end of the server's log."""
        return "\n".join(last_lines(self.log_path, LAST_WORDS))

    def _spawn(self) -> None:
        port = free_port()
        self.url = f"http://{HOST}:{port}"
        guard = [sys.executable, "-m", "nodes.backends.vllm.guard"]
        served = command(self._options, port, self._directory)
        self._process = spawn([*guard, *served], self.log_path, self._environment)
        self._started_at = time.monotonic()

    def _delay_s(self) -> float:
        if not self._started_at:
            return 0.0
        return self._backoff.ended(time.monotonic() - self._started_at)


def free_port() -> int:
    """Return a loopback port that nobody has at this moment."""
    with socket.socket() as found:
        found.bind((HOST, 0))
        return int(found.getsockname()[1])
