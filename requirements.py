"""What is installed: names from pyproject.toml, versions and hashes from constraints.txt.

python requirements.py test              what pip is asked for, with the extra `test`
python requirements.py --oldest test     the same, each at the oldest version that is admitted
python requirements.py --lock            remakes constraints.txt; asks the package index (needs uv)
python requirements.py --lock --upgrade-package torch     the same, with the newest torch
python requirements.py --wheel FILE      admits another build of a version that is pinned
"""

from __future__ import annotations

import argparse
import hashlib
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
LOCK = HERE / "constraints.txt"
HEAD = """\
# The versions that the tests are run with, and the hash of every wheel of them that Python 3.11 to
# 3.13 can choose on Linux, or on a Mac with Apple's processor. Ranges are in pyproject.toml.
# Remade by: python requirements.py --lock
"""
EXTRAS = ("test", "bench")
# It has no wheels.
BUILT = "llama-cpp-python"
PIN = re.compile(r"^(\S+)==(\S+)((?: \\\n    --hash=sha256:[0-9a-f]{64})*)$", re.MULTILINE)
PLATFORM = re.compile(r"any|manylinux\w*_(x86_64|aarch64)|macosx_\w+_(arm64|universal2)")
ABI = re.compile(r"none|abi3|cp31[123]")

# What is pinned, with its hashes.
Pins = dict[tuple[str, str], set[str]]


def wanted(extras: Sequence[str]) -> list[str]:
    """The requirements of the project and of building it; extras that name others have theirs."""
    content = tomllib.loads((HERE / "pyproject.toml").read_text(encoding="utf-8"))
    project, found = content["project"], list(content["build-system"]["requires"])
    found += project["dependencies"]
    waiting = list(extras)
    while waiting:
        for line in project["optional-dependencies"][waiting.pop()]:
            own = re.fullmatch(rf"{project['name']}\[(.+)\]", line)
            waiting += own[1].split(",") if own else []
            found += [] if own else [line]
    return sorted(dict.fromkeys(found))


def pins() -> Pins:
    """What constraints.txt says."""
    text = LOCK.read_text(encoding="utf-8")
    return {(m[1], m[2]): set(re.findall("[0-9a-f]{64}", m[3])) for m in PIN.finditer(text)}


def write(found: Pins) -> None:
    lines = [HEAD.rstrip("\n")]
    for (name, version), hashes in sorted(found.items()):
        lines.append(" \\\n    --hash=sha256:".join([f"{name}=={version}", *sorted(hashes)]))
    LOCK.write_text("\n".join(lines) + "\n", encoding="utf-8")


def lock(options: Sequence[str]) -> None:
    """Pins what is there, and what that needs, on every system; what is pinned stays if it can."""
    known = pins()
    with tempfile.TemporaryDirectory() as folder:
        asked, solved, files = (Path(folder) / n for n in ("asked.in", "all.txt", "pylock.toml"))
        asked.write_text("\n".join(["pip", *wanted(EXTRAS)]))
        solved.write_text("\n".join(f"{name}=={version}" for name, version in known))
        _compile(asked, solved, *options)
        _compile(solved, files, "--no-deps", "--format", "pylock.toml")
        packages = tomllib.loads(files.read_text(encoding="utf-8"))["packages"]
    found: Pins = {}
    for package in packages:
        pin = package["name"], package["version"]
        # Another build that was admitted stays so.
        found[pin] = {*_hashes(package), *known.get(pin, ())}
    if len({name for name, _ in found}) < len(found):
        sys.exit("some package is needed in two versions: narrow its range in pyproject.toml")
    write(found)


def _compile(source: Path, target: Path, *options: str) -> None:
    command = ["uv", "pip", "compile", "--quiet", "--universal", "--python-version", "3.11"]
    command += ["--fork-strategy", "fewest", "--only-binary", ":all:", "--no-binary", BUILT]
    command += ["--no-annotate", "--no-header"]
    subprocess.run([*command, *options, "--output-file", target, source], check=True)


def _hashes(package: dict[str, Any]) -> list[str]:
    wheels = [w for w in package.get("wheels", ()) if _fits(w.get("name") or w["url"])]
    files = wheels or [package["sdist"]]
    return [file["hashes"]["sha256"] for file in files]


def _fits(wheel: str) -> bool:
    """Whether it can be chosen where the head of constraints.txt says."""
    _, abi, platform = wheel.removesuffix(".whl").split("-")[-3:]
    return bool(ABI.fullmatch(abi)) and any(map(PLATFORM.fullmatch, platform.split(".")))


def admit(wheel: Path) -> None:
    """Adds the hash of a wheel, such as a build for processors alone, to its version's."""
    name, version = wheel.name.replace("_", "-").split("-")[:2]
    found = pins()
    key = (name, version.split("+")[0])
    if key not in found:
        sys.exit(f"{wheel.name}: constraints.txt pins no {name} {key[1]}")
    with wheel.open("rb") as file:
        found[key].add(hashlib.file_digest(file, "sha256").hexdigest())
    write(found)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("extras", nargs="*")
    parser.add_argument("--oldest", action="store_true")
    parser.add_argument("--lock", action="store_true")
    parser.add_argument("--wheel", type=Path)
    given, others = parser.parse_known_args()
    if given.lock:
        lock([*others, *given.extras])
    elif given.wheel:
        admit(given.wheel)
    else:
        lines = wanted(given.extras)
        print("\n".join(line.replace(">=", "==") if given.oldest else line for line in lines))


if __name__ == "__main__":
    main()
