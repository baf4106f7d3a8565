"""Images that Apptainer really builds, from a small root, and programs that run in them."""

import asyncio
import subprocess
from pathlib import Path

import pytest

from nodes.sandboxes.apptainer import Apptainer
from nodes.sandboxes.building import build, listed
from nodes.sandboxes.contract import Spec
from nodes.sandboxes.images import ImageError

from ..sandbox_kit import OWNER, leftovers, need
from ..small_root import make_archive, make_root

pytestmark = [pytest.mark.apptainer, pytest.mark.timeout(900)]
SINGULARITY = Path(__file__).parents[2] / "singularity"
DOCKERFILE = """\
ARG base=debian:12
FROM $base
LABEL rollmq.image="from a Dockerfile"
ENV WORD=hello
COPY note /note
WORKDIR /made
RUN cd /etc && echo "$WORD" > /made/word
RUN pwd > where
"""


@pytest.fixture
def place(short_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    need("apptainer")
    short_path.chmod(0o755)
    monkeypatch.chdir(short_path)
    make_root(short_path / "root")
    return short_path


def say(place: Path, image: str, script: str) -> list[str]:
    """Return the lines that a script prints in a sandbox of an image."""

    async def on_stage() -> list[str]:
        maker = Apptainer(place / "b", place / "records", {"": image})
        sandbox = await maker.start(Spec(), OWNER)
        try:
            done = await sandbox.exec(["sh", "-c", script], timeout_s=60.0)
        finally:
            await sandbox.stop()
            await maker.close()
        assert done.exit_code == 0, done.stderr
        return done.stdout.decode().splitlines()

    lines = asyncio.run(on_stage())
    assert leftovers(place) == []
    return lines


def test_a_dockerfile_is_built_from_an_archive_and_what_it_says_is_in_the_image(
    place: Path,
) -> None:
    make_archive(place / "root", place / "base.tar")
    (place / "note").write_text("noted\n")
    (place / "Dockerfile").write_text(DOCKERFILE)
    given = {"base": "oci-archive:base.tar"}
    image, is_new = build(place / "cache", "mine", place / "Dockerfile", given, fakeroot=False)
    assert is_new
    assert not build(place / "cache", "mine", place / "Dockerfile", given, fakeroot=False)[1]
    [found] = listed(place / "cache")
    assert found.labels == {"rollmq.image": "from a Dockerfile"}
    script = "cat /note /made/word /made/where"
    assert say(place, image.path, script) == ["noted", "hello", "/made"]


def test_the_definition_of_a_repository_installs_it_into_an_image_of_our_own(place: Path) -> None:
    (place / "plain.def").write_text("Bootstrap: localimage\nFrom: root\n")
    base, _ = build(place / "cache", "base", place / "plain.def", {}, fakeroot=False)
    repository = place / "repository"
    repository.mkdir()
    subprocess.run(["git", "init", "-q", repository], check=True)
    (repository / "code").write_text("mine\n")
    install = "sh -c 'git -C /testbed status --short > /testbed/installed'"
    given = {"base": base.path, "repository": str(repository), "install": install}
    image, _ = build(place / "cache", "swe", SINGULARITY / "swe.def", given, fakeroot=False)
    assert image.labels == {"rollmq.image": "swe"}
    assert say(place, image.path, "cat /testbed/code /testbed/installed")[:2] == [
        "mine",
        "?? code",
    ]


def test_a_build_that_a_program_of_the_image_fails_says_what_it_said(place: Path) -> None:
    text = "Bootstrap: localimage\nFrom: root\n\n%post\n    echo it is broken >&2\n    exit 3\n"
    (place / "broken.def").write_text(text)
    with pytest.raises(ImageError, match="it is broken"):
        build(place / "cache", "broken", place / "broken.def", {}, fakeroot=False)
    assert [path.suffix for path in (place / "cache").iterdir()] == [".lock"]
