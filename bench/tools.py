"""What one action of an agent costs: a command, a piece of Python, an edit, a sandbox.

    python -m bench.tools --json [--image FILE.sif]

Measured, in a running sandbox: `bash` and `ipython` by the tools themselves, from the call to the
text for the model; editor operations. Beside them, in the same sandbox and in alternating rounds:
the same shell behind tmux (send-keys, then capture-pane in a tight loop, with no sleep), a process
in the sandbox for each command (by the sandbox's own way in), with --image also `apptainer exec`
for each command, and the kernel's own round trip (its sockets, the same messages, no tool). Starts:
`bench.tools_start`.

Not measured: the model, the bus, and commands that do something. The upstream paper reports 0.42 s
an action, and 0.78 s with tmux, on machines of its own.
"""

import argparse
import asyncio
import itertools
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import zmq
from jupyter_client.session import Session

from bench import tools_start
from bench.measure import json_line, percentile, table, write_results
from engine.logs import configure
from nodes.sandboxes.contract import Sandbox
from nodes.tools.bash import Bash
from nodes.tools.editor import Editor
from nodes.tools.ipython import IPython

ROUNDS = 4
COMMAND = ["bash", "-c", "echo hi"]
Measured = dict[str, list[float]]


async def timed(
    action: Callable[[], Awaitable[Any]], count: int, expected: Callable[[Any], bool]
) -> list[float]:
    """Return milliseconds of each call; every answer is looked at."""
    found = []
    for _ in range(count):
        began = time.perf_counter()
        answer = await action()
        found.append(1000 * (time.perf_counter() - began))
        assert expected(answer), answer
    return found


class Tmux:
    """A shell of the sandbox in a tmux server of its own: text is typed, the screen is read."""

    def __init__(self, sandbox: Sandbox, place: Path) -> None:
        self._tmux = ["tmux", "-S", str(place / "tmux"), "-f", "/dev/null"]
        self._numbers = itertools.count(1)
        shell = shlex.join(sandbox.terminal(["bash", "--norc"]))
        self._do("new-session", "-d", "-x", "200", "-y", "50", shell)

    def _do(self, *words: str) -> str:
        done = subprocess.run([*self._tmux, *words], capture_output=True, text=True, check=True)
        return done.stdout

    def run(self) -> str:
        """Run a command, and wait until its mark is on the screen.

        Raises: TimeoutError.
        """
        mark = f"done-{next(self._numbers)}"
        self._do("send-keys", f"clear; echo hi; echo {mark[:4]}'{mark[4:]}'", "Enter")
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            screen = self._do("capture-pane", "-p").splitlines()
            if mark in screen:
                return "hi" if "hi" in screen else ""
        raise TimeoutError(f"tmux did not show {mark}")

    def close(self) -> None:
        """End the server that this object started."""
        self._do("kill-server")


def raw_kernel(ipython: IPython, count: int) -> list[float]:
    """Return milliseconds of the kernel's own round trip: request, reply and idle, no tool."""
    kernel = ipython._kernel  # noqa: SLF001 - the same kernel, by its own sockets
    session, context = Session(key=kernel._session.key), zmq.Context()  # noqa: SLF001
    shell, iopub = context.socket(zmq.DEALER), context.socket(zmq.SUB)
    iopub.setsockopt(zmq.SUBSCRIBE, b"")
    for socket, number in ((shell, 1), (iopub, 2)):
        path = kernel._sandbox.shared_dir / f"{kernel._name}-{number}"  # noqa: SLF001
        socket.connect(f"ipc://{path}")
        socket.setsockopt(zmq.RCVTIMEO, 10_000)
    found = []
    for _ in range(count + 5):
        content = {"code": "1 + 1", "silent": False, "store_history": True, "allow_stdin": False}
        began = time.perf_counter()
        asked = session.msg("execute_request", content)
        shell.send_multipart(session.serialize(asked))
        while True:
            _, parts = session.feed_identities(shell.recv_multipart())
            if session.deserialize(parts)["parent_header"]["msg_id"] == asked["msg_id"]:
                break
        while True:
            _, parts = session.feed_identities(iopub.recv_multipart())
            told = session.deserialize(parts)
            is_mine = told["parent_header"].get("msg_id") == asked["msg_id"]
            if is_mine and told["content"].get("execution_state") == "idle":
                break
        found.append(1000 * (time.perf_counter() - began))
    context.destroy(linger=0)
    return found[5:]


async def actions(sandbox: Sandbox, place: Path, count: int, image: str) -> Measured:
    """Measure every action in turns, in one sandbox."""
    bash, ipython, editor = Bash(sandbox), IPython(sandbox), Editor(sandbox)
    tmux = Tmux(sandbox, place) if shutil.which("tmux") else None
    found: Measured = {}

    def note(name: str, values: list[float]) -> None:
        found.setdefault(name, []).extend(values)

    async def output(argv: list[str]) -> str:
        started = await asyncio.create_subprocess_exec(*argv, stdout=subprocess.PIPE)
        return (await started.communicate())[0].decode()

    async def process() -> str:
        return await output(sandbox.inside(COMMAND))

    async def by_apptainer() -> str:
        return await output(["apptainer", "exec", "--containall", "--no-privs", image, *COMMAND])

    async def by_tmux() -> str:
        assert tmux is not None
        return await asyncio.to_thread(tmux.run)

    def said(answer: str) -> bool:
        return answer.startswith("hi")

    try:
        await timed(lambda: bash.call("echo hi"), 50, said)
        await timed(lambda: ipython.call("1 + 1"), 20, lambda text: text == "2")
        await editor.call("create", "a.txt", new="one\n" * 200)
        for _ in range(ROUNDS):
            note("bash", await timed(lambda: bash.call("echo hi"), count // ROUNDS, said))
            if tmux is not None:
                note("bash_tmux", await timed(by_tmux, max(5, count // 20 // ROUNDS), said))
            note("bash_exec", await timed(process, max(5, count // 20 // ROUNDS), said))
            if image:
                note("apptainer_exec", await timed(by_apptainer, 5, said))
            some = max(5, count // 5 // ROUNDS)
            note("ipython", await timed(lambda: ipython.call("1 + 1"), some, lambda t: t == "2"))
            note("ipython_raw", raw_kernel(ipython, some))  # nothing else runs meanwhile
            await ipython.call("0")  # hears what was published in between
            note("editor_view", await timed(lambda: editor.call("view", "a.txt"), some, bool))
            edit = lambda: editor.call("insert", "a.txt", line=0, new="x")  # noqa: E731
            note("editor_insert", await timed(edit, some, lambda text: "inserted" in text))
    finally:
        if tmux is not None:
            tmux.close()
        await bash.close()
        await ipython.close()
    return found


async def measured(maker: Any, place: Path, count: int, image: str) -> Measured:
    """Measure in a sandbox of one provider."""
    sandbox = await maker.start(tools_start.SPEC, tools_start.OWNER)
    try:
        return await actions(sandbox, place, count, image)
    finally:
        await sandbox.stop()
        await maker.close()


def main() -> None:
    """Print a table, and with --json one line at the end."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--image", default="", help="for Apptainer; without it bubblewrap is used")
    parser.add_argument("--count", type=int, default=2000, help="commands")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    configure("bench", "warning")
    with tempfile.TemporaryDirectory(prefix="rq", dir="/tmp") as folder:
        makers = {m.name: m for m in tools_start.providers(Path(folder), options.image)}
        provider = next(n for n in ("apptainer", "bubblewrap", "process") if n in makers)
        found = asyncio.run(measured(makers[provider], Path(folder), options.count, options.image))
    starts = tools_start.measure(options.image)
    rows = [[n, percentile(v, 50), percentile(v, 99), len(v)] for n, v in found.items()]
    rows += [
        [f"cold start, {n}", v["cold_start_p50_ms"], v["cold_start_max_ms"], ""]
        for n, v in starts.items()
    ]
    rows += [
        [f"warm start, {n}", v["warm_start_p50_ms"], v["warm_start_max_ms"], ""]
        for n, v in starts.items()
    ]
    print(table([f"action, in {provider}", "p50 ms", "p99 or max ms", "calls"], rows))
    middle = {name: percentile(values, 50) for name, values in found.items()}
    values = {
        "provider": provider,
        "bash_p50_ms": middle["bash"],
        "bash_p99_ms": percentile(found["bash"], 99),
        "bash_tmux_p50_ms": middle.get("bash_tmux"),
        "bash_exec_p50_ms": middle["bash_exec"],
        "apptainer_exec_p50_ms": middle.get("apptainer_exec"),
        "ipython_p50_ms": middle["ipython"],
        "ipython_ratio_raw": middle["ipython"] / middle["ipython_raw"],
        "editor_view_p50_ms": middle["editor_view"],
        "editor_insert_p50_ms": middle["editor_insert"],
        **{f"{n}_p50_ms": starts[provider][f"{n}_p50_ms"] for n in ("warm_start", "cold_start")},
    }
    write_results("tools", values)
    if options.json:
        print(json_line(values))


if __name__ == "__main__":
    main()
