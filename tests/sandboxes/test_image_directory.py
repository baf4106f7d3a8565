"""bubblewrap with a directory as its image: the root is that, and nothing of the host's."""

import asyncio
from pathlib import Path

from nodes.sandboxes.bubblewrap import Bubblewrap
from nodes.sandboxes.contract import Spec

from ..sandbox_kit import OWNER, S, leftovers, need
from ..small_root import make_root


def test_programs_of_an_image_directory_run_and_the_image_stays_as_it_is(short_path: Path) -> None:
    need("bubblewrap")
    short_path.chmod(0o755)
    root = make_root(short_path / "root")
    (root / "etc/mine").write_text("of the image\n")
    (root / "work/hidden").write_text("")

    async def on_stage() -> None:
        images = {"small": str(root)}
        maker = Bubblewrap(short_path / "b", short_path / "records", images)
        sandbox = await maker.start(Spec(image="small"), OWNER)
        try:
            done = await sandbox.exec(["sh", "-c", "cat /etc/mine; ls /usr/bin"], timeout_s=S)
            first, *programs = done.stdout.decode().splitlines()
            assert (first, sorted(programs)) == (
                "of the image",
                sorted(path.name for path in (root / "usr/bin").iterdir()),
            )
            for path in ("/etc/x", "/usr/bin/x", "/x"):
                done = await sandbox.exec(["sh", "-c", f"echo > {path}"], timeout_s=S)
                assert done.exit_code != 0, path
            await sandbox.write("/work/x", b"x")
            assert [entry.name for entry in await sandbox.list("/work")] == ["x"]
        finally:
            await sandbox.stop()
            await maker.close()

    asyncio.run(on_stage())
    assert not (root / "work/x").exists()
    assert leftovers(short_path) == []
