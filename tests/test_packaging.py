"""The wheel and the source archive: every file of the package, and a suite that can run."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import zipfile
from email.parser import HeaderParser
from pathlib import Path

import pytest

import setr

REPOSITORY = Path(__file__).parents[1]
BUILD = "from setuptools import build_meta as b; b.build_sdist('out'); b.build_wheel('out')"


def tracked() -> set[str]:
    """The files of the working tree that git knows, except those only for git, CI and Docker."""
    if not (REPOSITORY / ".git").exists() or shutil.which("git") is None:
        pytest.skip("needs a git checkout")
    command = ("git", "-C", REPOSITORY, "ls-files", "-z")
    listed = subprocess.run(command, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip(f"git lists no files: {listed.stderr.strip()}")  # of another user's checkout
    names = listed.stdout.split("\0")
    return {n for n in names if n and n[0] != "." and (REPOSITORY / n).is_file()}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with both archives, built from a copy of what git knows."""
    setuptools = pytest.importorskip("setuptools")
    if int(setuptools.__version__.partition(".")[0]) < 77:
        pytest.skip("needs setuptools 77")
    copy = tmp_path_factory.mktemp("packaging")
    for name in tracked():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(REPOSITORY / name, copy / name)
    subprocess.run([sys.executable, "-c", BUILD], cwd=copy, check=True, capture_output=True)
    return copy / "out"


def test_wheel_holds_the_package_and_nothing_else(built):
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = archive.read(f"setr-{setr.__version__}.dist-info/METADATA").decode()
        points = archive.read(f"setr-{setr.__version__}.dist-info/entry_points.txt").decode()
    package = {n for n in names if n.startswith("setr/")}
    assert package == {n.removeprefix("src/") for n in tracked() if n.startswith("src/")}
    others = {n.partition("dist-info/")[2] for n in names - package}
    assert {n for n in others if "/" in n} == {"licenses/LICENSE"}
    assert "" not in others
    assert "setr = setr.__main__:main" in points
    assert HeaderParser().parsestr(metadata)["Version"] == setr.__version__


def test_source_archive_holds_everything_its_tests_need(built):
    (archive,) = built.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        names = {n.name.partition("/")[2] for n in file.getmembers() if n.isfile()}
    made = {n for n in names if n in ("PKG-INFO", "setup.cfg") or ".egg-info/" in n}
    assert names - made == tracked()


def test_the_citation_is_of_this_version():
    text = (REPOSITORY / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {setr.__version__}\n" in text
