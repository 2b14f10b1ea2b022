"""Breaks every file that is read, and reads it: it is read, or refused in one line.

python tests/fuzz.py --count 2000 --seed 0

None may end in a traceback, take more than 5 seconds of a processor or 1 GB, and what is refused
must leave the folder as it was. Each is read in a child, forked from a process that has loaded all.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import resource
import shutil
import signal
import struct
import sys
import tempfile
import traceback
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gguf as gguf_library  # noqa: F401
import hypothesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))

from crash import PLACES, start, wait, write_place  # noqa: E402
from helpers.commands import call, evaluate, sample, train, train_toy  # noqa: E402
from helpers.files import write_jsonl  # noqa: E402
from helpers.gguf_files import GgufBytes  # noqa: E402
from helpers.mails import ME, write_mailbox  # noqa: E402
from helpers.workplaces import TINY  # noqa: E402

from minialign.commands import blind, import_mail, inspect  # noqa: E402, F401
from minialign.commands.cli import run_main  # noqa: E402
from minialign.commands.feedback import many_folders  # noqa: E402
from minialign.data.feedback_list import load_entries  # noqa: E402

# The list of feedbacks alone: to make data of them would take long.
listing = SimpleNamespace(main=lambda words: many_folders(load_entries(words[0]), Path("data")))
MODULES: dict[str, Any] = {
    **{"train": train, "sample": sample, "evaluate": evaluate, "blind": blind},
    **{"import": import_mail, "feedbacks": listing},
}
ON_TOY = ("--model", "toy")
INSPECT = ("train", *ON_TOY, "--inspect")
ASK = ("sample", "--prompt", "ab", "--max-new-tokens", "2")
ASK_TOY, ASK_RUN = (*ASK, *ON_TOY), (*ASK, "--adapter", "runs/demos")
GO_ON = (*INSPECT, "--edits", "edits.jsonl", "--init-adapter", "runs/demos", "--out", "runs/next")
COMPARE = ("evaluate", "runs/demos", "--compare")
EVALUATE = ("evaluate", "runs/demos", "--n", "1", "--judges", "style")
IMPORT = ("import", "--me", ME, "--out", "mine.jsonl")
# What is broken, and the command that reads it.
READERS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("demos.jsonl", (*INSPECT, "--demos", "demos.jsonl")),
    ("demos_test.jsonl", (*INSPECT, "--demos", "demos.jsonl")),
    ("pairs.jsonl", (*INSPECT, "--data", "pairs.jsonl")),
    ("edits.jsonl", (*INSPECT, "--edits", "edits.jsonl")),
    ("votes.jsonl", (*INSPECT, "--votes", "votes.jsonl")),
    ("sam/feedback.json", (*INSPECT, "--data", "sam")),
    ("sam/in_scope.jsonl", (*INSPECT, "--data", "sam")),
    ("sam/out_of_scope.jsonl", (*INSPECT, "--data", "sam")),
    ("prompts.jsonl", ("sample", "--prompts", "prompts.jsonl", "--max-new-tokens", "2", *ON_TOY)),
    ("feedbacks.jsonl", ("feedbacks", "feedbacks.jsonl")),
    ("flags.toml", (*INSPECT, "--config", "flags.toml")),
    ("flags.json", (*INSPECT, "--config", "flags.json")),
    ("sent.mbox", (*IMPORT, "sent.mbox")),
    ("table.csv", (*IMPORT, "table.csv")),
    ("list.json", (*IMPORT, "list.json")),
    ("letters.txt", (*IMPORT, "letters.txt")),
    ("toy/config.json", ASK_TOY),
    ("toy/generation_config.json", ASK_TOY),
    ("toy/tokenizer.json", ASK_TOY),
    ("toy/tokenizer_config.json", ASK_TOY),
    ("toy/chat_template.jinja", ASK_TOY),
    ("toy/model.safetensors.index.json", ASK_TOY),
    ("toy/model.safetensors", ASK_TOY),
    ("toy.gguf", (*ASK, "--model", "toy.gguf")),
    ("ollama/manifests/registry.ollama.ai/library/toy/latest", (*ASK, "--model", "ollama:toy")),
    ("runs/demos/adapter/adapter_config.json", ASK_RUN),
    ("runs/demos/adapter/adapter_model.safetensors", ASK_RUN),
    ("runs/demos/adapter/base.json", ASK_RUN),
    ("runs/demos/adapter/adapter_config.json", GO_ON),
    ("runs/demos/adapter/adapter_model.safetensors", GO_ON),
    ("runs/demos/config.json", ASK_RUN),
    ("runs/demos/config.json", COMPARE),
    ("runs/demos/metrics.jsonl", COMPARE),
    ("runs/demos/samples.jsonl", COMPARE),
    ("runs/demos/preview.json", COMPARE),
    ("runs/demos/evaluation.json", ("blind", "runs/demos")),
    ("runs/half/config.json", ("train", "--resume", "runs/half")),
    ("runs/half/metrics.jsonl", ("train", "--resume", "runs/half")),
    ("runs/half/state/state.safetensors", ("train", "--resume", "runs/half")),
)
SECONDS, BYTES, HANGS = 5.0, 10**9, 90
# Beyond these a child is killed.
LIMITS = {resource.RLIMIT_CPU: 20, resource.RLIMIT_AS: 6 * 10**9, resource.RLIMIT_FSIZE: 10**9}


def write_workplace(folder: Path) -> Path:
    """All that is read, whole: inputs of every kind, a finished run, a run that was killed."""
    write_place(folder)
    prompts = [{"prompt": "Hi"}, {"messages": [{"role": "user", "content": "Ho"}]}]
    write_jsonl(folder / "prompts.jsonl", prompts)
    write_jsonl(folder / "edits.jsonl", [{"prompt": "a", "draft": "b c", "final": "b d"}])
    sides: dict[str, Any] = {
        side: {"by": side, "text": f"{side} it is"} for side in ("left", "right")
    }
    write_jsonl(
        folder / "votes.jsonl", [{"prompt": "a", **sides, "vote": "left", "page": "p", "pair": 1}]
    )
    check = {"kind": "ends_with", "text": "Sam"}
    entries = [
        {"content": "Sign as Sam", "domain": "notes", "effect": "end with 'Sam'", "check": check},
        {
            "content": "Be brief",
            "metric": ["length"],
            "comparison": "less_eq_than",
            "categories": ["a"],
        },
    ]
    write_jsonl(folder / "feedbacks.jsonl", entries)
    (folder / "flags.toml").write_text('demos = "demos.jsonl"\nbeta = 0.1\n[sft]\nmax-steps = 3\n')
    flags = {"demos": "demos.jsonl", "seed": 3, "sft": {"max_steps": 3, "learning_rate": 1e-4}}
    (folder / "flags.json").write_text(json.dumps(flags))
    write_mailbox(folder / "sent.mbox", 12, 12, 1)
    long = "the bread rose and we ate it all before anyone came home from the market " * 3
    rows = [{"subject": f"Bread {n}", "text": f"{n} {long}"} for n in range(4)]
    (folder / "list.json").write_text(json.dumps(rows))
    lines = ["subject,text", *(f'{row["subject"]},"{row["text"]}"' for row in rows)]
    (folder / "table.csv").write_text("\n".join(lines))
    (folder / "letters.txt").write_text("\n---\n".join(row["text"] for row in rows))
    toy = folder / "toy"
    (toy / "generation_config.json").write_text('{"eos_token_id": [2]}')
    config = json.loads((toy / "tokenizer_config.json").read_text())
    (toy / "chat_template.jinja").write_text(config["chat_template"])
    names = ["model.embed_tokens.weight"]
    index = {"weight_map": dict.fromkeys(names, "model.safetensors")}
    (toy / "model.safetensors.index.json").write_text(json.dumps(index))
    GgufBytes().write(folder / "toy.gguf")
    _write_ollama(folder / "ollama", folder / "toy.gguf")
    train_toy(folder)
    assert call(evaluate, *EVALUATE[1:], cwd=folder).code == 0
    arguments = (
        "--demos",
        "demos.jsonl",
        *ON_TOY,
        "--out",
        "runs/half",
        "--save-every",
        "0",
        *TINY,
    )
    assert wait(start(folder, arguments, PLACES["third state"])) == -signal.SIGKILL
    (folder / "log.txt").unlink()
    return folder


def _write_ollama(folder: Path, gguf: Path) -> None:
    digest = hashlib.sha256(gguf.read_bytes()).hexdigest()
    (folder / "blobs").mkdir(parents=True)
    shutil.copy(gguf, folder / "blobs" / f"sha256-{digest}")
    layer = {"mediaType": "application/vnd.ollama.image.model", "digest": f"sha256:{digest}"}
    manifest = folder / "manifests" / "registry.ollama.ai" / "library" / "toy" / "latest"
    manifest.parent.mkdir(parents=True)
    manifest.write_text(json.dumps({"layers": [layer]}))


# ---- what is broken, and how ----

# What stands for something in a text, in JSON, TOML or a program.
TOKEN = re.compile(rb'"(?:[^"\\\n]|\\.)*"|-?\d[\d.eE+-]*|true|false|null|\w+|[^\w\s]')
FRAGMENTS = [
    *(b"", b" ", b"\n", b"null", b"true", b"{}", b"[]", b'""', b"[[[]]]", b'{"a": {"a": [1]}}'),
    *(b"0", b"-1", b"1.5", b"1e999", b"NaN", b"-Infinity", b"1" + 400 * b"0", b"5000000"),
    *(
        b"99999999999",
        b"9223372036854775808",
        b'"1"',
        b'"x"',
        b'"../../etc/passwd"',
        b'"/dev/zero"',
    ),
    *(
        b'"\\ud83d"',
        b'"\\u0000"',
        b"\x00",
        b"\xff\xfe",
        b"\xef\xbb\xbf",
        b"\x1b[2J",
        b"\xe2\x80\xae",
    ),
    *(b"{", b"}", b"[", b'"', b",", b"\\", b"\r", b"---", b"From x@y 2024\n", b"../x", b"nan"),
    *(b'"' + 1_000_000 * b"x" + b'"', 100_000 * b"[", 100_000 * b'{"a":', b"9" * 100_000),
    *(b"word " * 100_000, b"\n" * 100_000, "é".encode() * 1000, "\U0001f600".encode()),
    *(b"{% for a in range(10**9) %}{% for b in range(10**9) %}x{% endfor %}{% endfor %}",),
    *(b"{{ 'a' * 3000000000 }}", b"{{ messages[99].x }}", b"{% raise %}", b"{{ ''.__class__ }}"),
    *(struct.pack("<Q", n) for n in (0, 1, 2**31, 2**40, 2**63 - 1, 2**64 - 1)),
]
WAYS = ("replace", "replace", "insert", "cut", "drop", "repeat", "byte")
# Something else than a file with a content.
OTHERS = ("missing", "folder", "fifo", "device", "loop", "sparse")
HUGE = 3 * 10**9


@st.composite
def broken(draw: st.DrawFn, whole: bytes) -> bytes:
    """A content with one to three faults."""
    content = whole
    for _ in range(draw(st.integers(1, 3))):
        way = draw(
            st.sampled_from(("replace", "replace", "insert", "cut", "drop", "repeat", "byte"))
        )
        spots = [m.span() for m in TOKEN.finditer(content[:20_000])] or [(0, 0)]
        first, last = spots[draw(st.integers(0, len(spots) - 1))]
        fragment = draw(st.sampled_from(FRAGMENTS))
        if way == "replace":
            content = content[:first] + fragment + content[last:]
        elif way == "insert":
            content = content[:first] + fragment + content[first:]
        elif way == "cut":
            content = content[:last]
        elif way == "drop":
            content = content[:first] + content[last + draw(st.integers(0, 40)) :]
        elif way == "repeat":
            part = content[first : min(last, first + 999) + draw(st.integers(0, 99))]
            content = content[:last] + part * draw(st.integers(1, 999)) + content[last:]
        else:
            content = content[:first] + bytes([draw(st.integers(0, 255))]) + content[first + 1 :]
    return content


def spoil(file: Path, how: bytes | str) -> None:
    """Puts a content in a file's place, or one of OTHERS."""
    file.unlink()
    if isinstance(how, bytes):
        file.write_bytes(how)
    elif how == "folder":
        file.mkdir()
    elif how == "fifo":
        os.mkfifo(file)
    elif how in ("device", "loop"):
        file.symlink_to("/dev/zero" if how == "device" else file.name)
    elif how == "sparse":
        with file.open("wb") as opened:
            opened.truncate(HUGE)


# ---- what must not come of it ----


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    code: int
    said: str
    seconds: float
    bytes: int

    def faults(self) -> list[str]:
        """What is wrong with it."""
        told = [line for line in self.said.splitlines() if "timing a few" not in line]
        return [
            *([f"status {self.code}"] if self.code not in (0, 2) else []),
            *(["a traceback"] if "Traceback" in self.said else []),
            *([f"{len(told)} lines"] if self.code == 2 and len(told) != 1 else []),
            *(["a long line"] if self.code == 2 and len(self.said) > 2000 else []),
            *([f"{self.seconds:.1f} s"] if self.seconds > SECONDS else []),
            *([f"{self.bytes / 1e9:.1f} GB"] if self.bytes > BYTES else []),
        ]


def read(folder: Path, command: tuple[str, ...]) -> Outcome:
    """Calls a command in a child, in `folder`."""
    with tempfile.TemporaryFile() as log:
        held = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
        child = os.fork()
        if not child:
            _be_child(folder, command, log.fileno())
        # What waits for a pipe takes no time of a processor.
        before = signal.signal(signal.SIGALRM, lambda *_: os.kill(child, signal.SIGKILL))
        signal.alarm(HANGS)
        _, status, usage = os.wait4(child, 0)
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        log.seek(0)
        said = log.read().decode("utf-8", "replace")
    code = os.waitstatus_to_exitcode(status)
    spent = usage.ru_utime + usage.ru_stime
    return Outcome(code, said, spent, max(0, usage.ru_maxrss * 1024 - held))


def _be_child(folder: Path, command: tuple[str, ...], log: int) -> None:
    """Does what a door does, its words on stderr in `log`; never returns."""
    code = 99
    try:
        os.chdir(folder)
        nowhere = os.open(os.devnull, os.O_RDWR)
        for stream, target in ((0, nowhere), (1, nowhere), (2, log)):
            os.dup2(target, stream)
        for limit, most in LIMITS.items():
            resource.setrlimit(limit, (most, most))
        sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w")
        sys.argv = [f"{command[0]}.py", *command[1:]]
        run_main(sys.argv[0], lambda: MODULES[command[0]].main(list(command[1:])))
    except SystemExit as left:
        code = int(left.code or 0)
    except BaseException:
        traceback.print_exc()
    sys.stderr.flush()
    os._exit(code)


def stamps(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file below a folder, but for locks, with its size and when it was changed."""
    files = [path for path in folder.rglob("*") if not path.is_dir() and path.name != ".lock"]
    return {str(path): (path.lstat().st_size, path.lstat().st_mtime_ns) for path in files}


class Fuzzer:
    """A folder to break, and what has been found."""

    def __init__(self, base: Path, kept: Path | None = None) -> None:
        self.kept = kept
        self.template, self.folder = write_workplace(base / "template"), base / "folder"
        shutil.copytree(self.template, self.folder)
        os.environ["OLLAMA_MODELS"] = "ollama"
        self.seen: set[tuple[int, bytes | str]] = set()
        self.refused: set[tuple[int, bytes | str]] = set()
        self.failed: list[str] = []

    def check_whole(self) -> None:
        """Every command must succeed on files that nobody broke."""
        for command in dict.fromkeys(command for _, command in READERS):
            outcome = read(self.folder, command)
            assert outcome.code == 0, f"{command}: {outcome}"
            self._renew()

    def attempt(self, reader: int, how: bytes | str) -> str:
        """Reads a file that is broken; "" if that goes well, else what was wrong."""
        key = reader, hashlib.sha256(how).digest() if isinstance(how, bytes) else how
        if key not in self.seen and len(self.seen) % 100 == 99:
            print(self.summary(), flush=True)
        self.seen.add(key)
        file, command = READERS[reader]
        spoil(self.folder / file, how)
        before = stamps(self.folder)
        outcome = read(self.folder, command)
        faults, after = outcome.faults(), stamps(self.folder)
        if outcome.code == 2 and after != before:
            faults.append(f"written: {sorted(set(after.items()) ^ set(before.items()))[:3]}")
        self.refused |= {key} if outcome.code == 2 else set()
        if faults:
            self._keep(reader, how, ", ".join(faults), outcome.said)
        self._renew() if after != before else self._mend(file)
        return ", ".join(faults)

    def _keep(self, reader: int, how: bytes | str, fault: str, said: str) -> None:
        """Prints a line, and saves what failed."""
        file, command = READERS[reader]
        last = (said.strip().splitlines() or [""])[-1]
        shown = how if isinstance(how, str) else f"{len(how)} bytes"
        self.failed.append(f"{file} ({shown}), {command[0]}: {fault}: {last[:300]}")
        print(f"{len(self.failed)}: {self.failed[-1]}", flush=True)
        if self.kept:
            self.kept.mkdir(parents=True, exist_ok=True)
            (self.kept / f"{len(self.failed)}.txt").write_text(f"{reader} {file}\n{said}")
            content = how if isinstance(how, bytes) else how.encode()
            (self.kept / f"{len(self.failed)} {Path(file).name}").write_bytes(content)

    def _renew(self) -> None:
        shutil.rmtree(self.folder)
        shutil.copytree(self.template, self.folder)

    def _mend(self, file: str) -> None:
        target = self.folder / file
        shutil.rmtree(target) if target.is_dir() else target.unlink(missing_ok=True)
        shutil.copy2(self.template / file, target)

    def run(self, count: int, seed: int) -> None:
        """`count` distinct inputs, the same ones for the same seed."""
        whole = {file: (self.template / file).read_bytes() for file, _ in READERS}

        def inputs(reader: int) -> st.SearchStrategy[tuple[int, bytes | str]]:
            content, other = broken(whole[READERS[reader][0]]), st.sampled_from(OTHERS)
            return st.tuples(st.just(reader), st.one_of(*[content] * 12, other))

        while len(self.seen) < count:

            @hypothesis.seed(seed)
            @settings(
                # The first of a seed are always alike.
                max_examples=max(9, count - len(self.seen)),
                database=None,
                deadline=None,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            )
            @given(st.integers(0, len(READERS) - 1).flatmap(inputs))
            def attempt(drawn: tuple[int, bytes | str]) -> None:
                if len(self.seen) < count:
                    self.attempt(*drawn)

            attempt()
            seed += 1

    def summary(self) -> str:
        well = len(self.seen) - len(self.failed)
        return f"{len(self.seen)} inputs: {len(self.refused)} refused, {well} without a fault"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="a folder for what failed")
    given_flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as base:
        fuzzer = Fuzzer(Path(base), given_flags.keep)
        fuzzer.check_whole()
        fuzzer.run(given_flags.count, given_flags.seed)
        print(fuzzer.summary())
        sys.exit(bool(fuzzer.failed))


if __name__ == "__main__":
    main()
