"""Whatever a task or a model names, no shell and no path of the host makes anything of it."""

import asyncio
from collections.abc import Awaitable
from pathlib import Path

import pytest

from engine.errors import BoundaryError
from nodes.sandboxes.contract import Finished, Sandbox, SandboxFileError, Spec

from ..sandbox_kit import OWNER, Play, S, everywhere, make_provider, need

NAMES = (
    "$(touch pwned)",
    "`touch pwned`",
    "'; touch pwned; '",
    '"; touch pwned; "',
    "a b\tc",
    "line\nbreak",
    "-rf",
    "--help",
    "*",
    "~",
    "%s%n",
    "\x1b[2J",
    "ü\N{PILE OF POO}",
    "x" * 255,
)


async def ran(call: Awaitable[Finished]) -> bool:
    """Return whether a program did its work; a call that is refused did not."""
    try:
        return (await call).exit_code == 0
    except BoundaryError:
        return False


@everywhere
def test_programs_get_their_arguments_as_they_are(play: Play) -> None:
    async def scene(sandbox: Sandbox) -> None:
        done = await sandbox.exec(["printf", "%s\\0", *NAMES], timeout_s=S)
        assert done.stdout == b"".join(name.encode() + b"\0" for name in NAMES)
        done = await sandbox.exec(
            ["sh", "-c", 'printf %s "$N"'], timeout_s=S, environment={"N": NAMES[2]}
        )
        assert done.stdout.decode() == NAMES[2]
        assert not [entry for entry in await sandbox.list("/work") if entry.name == "pwned"]

    play(scene)


@everywhere
def test_files_have_the_names_that_they_are_given(play: Play) -> None:
    async def scene(sandbox: Sandbox) -> None:
        for name in NAMES:
            await sandbox.write(f"/work/{name}", name.encode())
            assert await sandbox.read(f"/work/{name}", 4096) == name.encode()
        found = {entry.name for entry in await sandbox.list("/work")}
        assert found == set(NAMES)

    play(scene)


@everywhere
def test_a_null_character_is_refused_and_the_sandbox_goes_on(play: Play) -> None:
    async def scene(sandbox: Sandbox) -> None:
        with pytest.raises(SandboxFileError):
            await sandbox.read("/work/a\0b", 10)
        with pytest.raises(SandboxFileError):
            await sandbox.write("/work/a\0b", b"")
        for argv, cwd, environment in (
            (["echo", "a\0b"], "", {}),
            (["echo\0"], "", {}),
            (["true"], "/work/\0", {}),
            (["true"], "", {"A": "b\0c"}),
            (["true"], "", {"A=\0": "b"}),
        ):
            assert not await ran(sandbox.exec(argv, timeout_s=S, cwd=cwd, environment=environment))
        assert (await sandbox.exec(["true"], timeout_s=S)).exit_code == 0

    play(scene)


@pytest.mark.parametrize(
    "image", ["/etc", "../../etc", "-h", "$(touch pwned)", "a\0b", "docker://x"]
)
@pytest.mark.parametrize("provider", ["bubblewrap"])
def test_an_image_is_one_that_the_topology_names(
    provider: str, image: str, short_path: Path
) -> None:
    need(provider)

    async def start() -> None:
        maker = make_provider(provider, short_path)
        try:
            await maker.start(Spec(image), OWNER)
        finally:
            await maker.close()

    with pytest.raises(BoundaryError, match="the topology names no image"):
        asyncio.run(start())
