"""Puts the JavaScript that the local API's page needs into local_runpod/vendored. Run by scripts/vendor.

Each package comes from npm in the version named here; npm checks the archive against the registry's own hash, and this
checks the files that are taken from it against what is committed in `vendored.json`, unless the version is new.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "local_runpod" / "vendored"
RECORD = FOLDER / "vendored.json"


@dataclass(frozen=True)
class Package:
    """A package of npm: its version, and which of its files to take, under which names."""

    name: str
    version: str
    files: dict[str, str]


PACKAGES = (
    Package(
        "markdown-it",
        "15.0.3",
        {"dist/browser/markdown-it.umd.min.js": "markdown-it.min.js", "LICENSE": "markdown-it.LICENSE"},
    ),
    Package("dompurify", "3.5.0", {"dist/purify.min.js": "purify.min.js", "LICENSE": "purify.LICENSE"}),
)


def main() -> int:
    """Fetch every package and write its files. Returns 1 if a file differs from the one recorded for its version."""
    argparse.ArgumentParser(prog="scripts/vendor", description=__doc__).parse_args()
    known = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.exists() else {}
    record: dict[str, dict[str, str]] = {}
    FOLDER.mkdir(exist_ok=True)
    for package in PACKAGES:
        release = f"{package.name}@{package.version}"
        files = fetch(package)
        record[release] = {name: digest(data) for name, data in sorted(files.items())}
        if known.get(release, record[release]) != record[release]:
            print(f"{release} is not what it was: {known[release]} became {record[release]}", file=sys.stderr)
            return 1
        for name, data in files.items():
            (FOLDER / name).write_bytes(data)
        print(f"{release}: {', '.join(files)}")
    RECORD.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return 0


def fetch(package: Package) -> dict[str, bytes]:
    """The wanted files of a package, by the names that they get here."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["npm", "pack", "--silent", f"{package.name}@{package.version}", "--pack-destination", folder]
        archive = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
        with tarfile.open(Path(folder) / archive) as tar:
            return {name: _read(tar, f"package/{path}") for path, name in package.files.items()}


def digest(data: bytes) -> str:
    """How a file is recorded."""
    return f"sha256-{hashlib.sha256(data).hexdigest()}"


def _read(tar: tarfile.TarFile, path: str) -> bytes:
    member = tar.extractfile(path)
    if member is None:
        raise LookupError(f"{path} is not a file")
    return member.read()


if __name__ == "__main__":
    sys.exit(main())
