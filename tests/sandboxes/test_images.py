"""Images: built once, found again by their content, whatever happens at the same time."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from nodes.sandboxes.building import digest, listed, prune
from nodes.sandboxes.images import ImageError
from nodes.sandboxes.recipes import resolve, sources

REPOSITORY = Path(__file__).parents[2]
BUILDER = """\
#!/bin/sh
[ "$1" = --version ] && exit
[ "$1" = inspect ] && { echo '{"data": {"attributes": {"labels": {"of": "mine"}}}}'; exit; }
echo built >> "$(dirname "$0")/builds"
sleep 1
grep -q broken "$4" && { echo "it is broken" >&2; exit 3; }
cp "$4" "$3"
"""
PLAIN = "Bootstrap: localimage\nFrom: {{ rootfs }}\n\n%arguments\n    extra=nothing\n"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Return a directory with a builder that is none, a root file system and a definition."""
    builder = tmp_path / "bin" / "apptainer"
    builder.parent.mkdir()
    builder.write_text(BUILDER)
    builder.chmod(0o755)
    (tmp_path / "rootfs").mkdir()
    (tmp_path / "rootfs" / "file").write_text("one")
    (tmp_path / "image.def").write_text(PLAIN)
    return tmp_path


def command(place: Path, *words: str) -> list[str]:
    program = (
        "import sys; from nodes.sandboxes.command import images; sys.exit(images(sys.argv[1:]))"
    )
    return [sys.executable, "-c", program, "--cache", str(place / "cache"), *words]


def start(place: Path, *words: str) -> "subprocess.Popen[str]":
    path = f"{place / 'bin'}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(REPOSITORY)}
    return subprocess.Popen(
        command(place, *words),
        cwd=place,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def build(place: Path, *words: str) -> str:
    process = start(place, "build", "image.def", "--name", "base", "--arg", "rootfs=rootfs", *words)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    return out.strip()


def builds(place: Path) -> int:
    return (place / "bin" / "builds").read_text().count("built")


def test_an_image_is_built_once_and_again_when_a_file_has_changed(place: Path) -> None:
    first = build(place)
    assert Path(first).exists()
    assert build(place) == first
    assert builds(place) == 1
    (place / "rootfs" / "file").write_text("two")
    assert build(place) != first
    assert builds(place) == 2
    assert [image.labels for image in listed(place / "cache")] == [{"of": "mine"}] * 2
    [removed] = prune(place / "cache", 1)
    assert removed.path == first
    assert not Path(first).exists()


def test_builds_at_the_same_time_build_once(place: Path) -> None:
    words = ("build", "image.def", "--name", "base", "--arg", "rootfs=rootfs")
    processes = [start(place, *words) for _ in range(3)]
    said = {process.communicate(timeout=60)[0] for process in processes}
    assert {process.returncode for process in processes} == {0}
    assert len(said) == 1
    assert builds(place) == 1


def test_a_build_that_fails_says_why_and_leaves_nothing(place: Path) -> None:
    (place / "image.def").write_text(PLAIN + "# broken\n")
    process = start(place, "build", "image.def", "--name", "base", "--arg", "rootfs=rootfs")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "it is broken" in err
    assert [path.suffix for path in (place / "cache").iterdir()] == [".lock"]


def test_an_argument_that_is_missing_or_unknown_is_refused() -> None:
    with pytest.raises(ImageError, match="--arg rootfs="):
        resolve(PLAIN, {})
    with pytest.raises(ImageError, match="no argument mirror; there are: rootfs"):
        resolve(PLAIN, {"rootfs": "/r", "mirror": "m"})
    text = resolve("{{ a }} {{b}}\n%arguments\n    b=2\n", {"a": "1"})
    assert text.startswith("1 2\n")


def test_what_an_image_is_made_from_counts_names_modes_links_and_bytes(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "a").write_text("x")
    seen = {digest("def", [root])}
    (root / "a").chmod(0o755)
    seen.add(digest("def", [root]))
    (root / "a").rename(root / "b")
    seen.add(digest("def", [root]))
    (root / "link").symlink_to("b")
    seen.add(digest("def", [root]))
    seen.add(digest("other", [root]))
    assert len(seen) == 5
    with pytest.raises(ImageError, match="is not there"):
        digest("def", [tmp_path / "nowhere"])


def test_files_of_a_definition_are_its_sources(tmp_path: Path) -> None:
    text = (
        "Bootstrap: localimage\nFrom: base.sif\n\n%files\n    repo /testbed\n    a/b /c\n\n%post\n"
    )
    assert sources(text, tmp_path) == [tmp_path / "base.sif", tmp_path / "repo", tmp_path / "a/b"]
    assert sources("Bootstrap: docker\nFrom: python:3\n", tmp_path) == []
    stages = (
        "Bootstrap: oci-archive\nFrom: a.tar:tag\n%files from one\n    /x /y\n%files\n    c /c\n"
    )
    assert sources(stages, tmp_path) == [tmp_path / "a.tar", tmp_path / "c"]


@pytest.mark.parametrize("name", ["base", "docker", "swe"])
def test_the_definitions_of_this_repository_resolve(name: str) -> None:
    text = (REPOSITORY / "singularity" / f"{name}.def").read_text()
    given = {"base": {"rootfs": "r"}, "docker": {}, "swe": {"base": "b", "repository": "r"}}
    assert "{{" not in resolve(text, given[name])
