"""A root file system of a few megabytes: programs of this machine with their libraries."""

import hashlib
import json
import shutil
import subprocess
import tarfile
from pathlib import Path

PROGRAMS = ("sh", "bash", "cat", "ls", "mkdir", "id", "env", "sleep", "git")
LINKS = {"bin": "usr/bin", "sbin": "usr/bin", "lib": "usr/lib", "lib64": "usr/lib64"}
PLACES = ("etc", "tmp", "var/tmp", "work", "shared", "proc", "sys", "dev", "root", "run")


def make_root(root: Path) -> Path:
    """Make the tree and return it. Raises: OSError if a program is missing here."""
    for place in ("usr/bin", *PLACES):
        (root / place).mkdir(parents=True)
    for name, target in LINKS.items():
        (root / name).symlink_to(target)
    (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    (root / "etc/group").write_text("root:x:0:\n")
    for name in PROGRAMS:
        found = shutil.which(name)
        assert found, f"{name} is not installed"
        _copy(Path(found), root / "usr/bin" / name)
        told = subprocess.run(["ldd", found], capture_output=True, text=True, check=True).stdout
        for word in told.split():
            if word.startswith("/"):
                _copy(Path(word), root / "usr" / word.removeprefix("/usr").lstrip("/"))
    return root


def _copy(source: Path, to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    if not to.exists():
        shutil.copy(source.resolve(), to)


def make_archive(root: Path, path: Path) -> Path:
    """Write a tree as an OCI archive of one layer and return its path."""
    place = path.with_suffix(".layout")
    blobs = place / "blobs/sha256"
    blobs.mkdir(parents=True)
    with tarfile.open(place / "layer", "w") as layer:
        layer.add(root, ".")
    about = _blob(blobs, (place / "layer").read_bytes())
    (place / "layer").unlink()
    config = {
        "architecture": "amd64",
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [about["digest"]]},
        "config": {"Env": ["PATH=/usr/bin:/bin"]},
    }
    kind = "application/vnd.oci.image"
    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{kind}.manifest.v1+json",
        "config": {"mediaType": f"{kind}.config.v1+json", **_blob(blobs, _json(config))},
        "layers": [{"mediaType": f"{kind}.layer.v1.tar", **about}],
    }
    entry = {"mediaType": f"{kind}.manifest.v1+json", **_blob(blobs, _json(manifest))}
    (place / "index.json").write_bytes(_json({"schemaVersion": 2, "manifests": [entry]}))
    (place / "oci-layout").write_bytes(_json({"imageLayoutVersion": "1.0.0"}))
    with tarfile.open(path, "w") as archive:
        for each in sorted(place.iterdir()):
            archive.add(each, each.name)
    return path


def _json(value: object) -> bytes:
    return json.dumps(value).encode()


def _blob(blobs: Path, data: bytes) -> dict[str, object]:
    name = hashlib.sha256(data).hexdigest()
    (blobs / name).write_bytes(data)
    return {"digest": f"sha256:{name}", "size": len(data)}
