"""What pyproject.toml cannot say: absolute links, and the same bytes for the same sources."""

import gzip
import os
import re
import tarfile
import time
import tomllib
from pathlib import Path

from setuptools import setup
from setuptools.command.sdist import sdist

ROOT = Path(__file__).parent


def long_description():
    """Return the README as an index shows it: its links lead to this version in the repository."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    address, version = project["urls"]["Repository"], project["version"]

    def absolute(link):
        kind = "raw" if link[1] else "blob"
        return f"{link[1]}[{link[2]}]({address}/{kind}/v{version}/{link[3]})"

    text = (ROOT / "README.md").read_text("utf-8")
    return re.sub(r"(!?)\[([^\]]*)\]\((?!https?:|#)([^)\s]+)\)", absolute, text)


class ReproducibleArchive(sdist):
    """An archive that depends on the sources and on ``SOURCE_DATE_EPOCH`` alone."""

    def make_archive(self, base_name, format=None, root_dir=None, base_dir=None, **_):
        """Write the archive in one order, with one date, without the names of users."""
        date = int(os.environ.get("SOURCE_DATE_EPOCH", time.time()))

        def plain(entry):
            entry.mtime, entry.uid, entry.gid, entry.uname, entry.gname = date, 0, 0, "", ""
            entry.mode = 0o755 if entry.isdir() or entry.mode & 0o100 else 0o644
            return entry

        file = Path(f"{base_name}.tar.gz")
        file.parent.mkdir(parents=True, exist_ok=True)
        with (
            file.open("wb") as raw,
            gzip.GzipFile("", "wb", mtime=date, fileobj=raw) as zipped,
            tarfile.open(mode="w", fileobj=zipped) as archive,
        ):
            for path in sorted(Path(base_dir).rglob("*")):
                archive.add(path, path.as_posix(), recursive=False, filter=plain)
        return str(file)


if __name__ == "__main__":
    setup(
        cmdclass={"sdist": ReproducibleArchive},
        long_description=long_description(),
        long_description_content_type="text/markdown",
    )
