"""Kills trainings, at random moments and at named places, and goes on with `--resume` alone.

python tests/crash.py --random 120 --named 40

Every run must end with the bytes of the run that nobody killed: adapters, samples, metrics without
times, preview, report without times. Children are forked from one process, which has loaded all.
"""

from __future__ import annotations

import argparse
import collections
import functools
import itertools
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from helpers.feedback_runs import write_data  # noqa: E402
from helpers.files import write_jsonl  # noqa: E402
from helpers.runs import without_seconds  # noqa: E402
from helpers.workplaces import TINY, TINY_SFT, write_workplace  # noqa: E402

from minialign.commands import bounds, train  # noqa: E402, F401
from minialign.commands.cli import run_main  # noqa: E402
from minialign.evaluation.report import page  # noqa: E402, F401
from minialign.methods import c3po, dpo, sft, spin  # noqa: E402, F401

DEMOS = ("--demos", "demos.jsonl")
SCOPED = ("--lora-rank", "4", "--learning-rate", "0.01", "--epochs", "2", "--pairs-per-step", "2")
METHODS: dict[str, tuple[str, ...]] = {
    "ditto": ("--method", "ditto", *DEMOS, *TINY),
    "ditto with anchors": ("--method", "ditto", *DEMOS, *TINY, "--anchors", "0.1"),
    "sft": ("--method", "sft", *DEMOS, *TINY_SFT),
    "spin": ("--method", "spin", *DEMOS, *TINY),
    "dpo": ("--method", "dpo", "--data", "pairs.jsonl", *SCOPED),
    "c3po": ("--method", "c3po", "--data", "sam", *SCOPED),
}
# What is called, for which name, the how-manieth time, and whether it is killed after that.
Place = tuple[str, str, int, bool]
PLACES: dict[str, Place] = {
    "folder made": ("mkdir", ".run", 1, True),
    "record written": ("replace", "config.json", 1, True),
    "folder in place": ("rename", "run", 1, True),
    "before the first state": ("replace", "state.safetensors", 1, False),
    "first state": ("replace", "state.safetensors", 1, True),
    "before the third state": ("replace", "state.safetensors", 3, False),
    "third state": ("replace", "state.safetensors", 3, True),
    "weights of the adapter": ("replace", "adapter_model.safetensors", 1, True),
    "before the adapter": ("replace", "adapter_config.json", 1, False),
    "adapter": ("replace", "adapter_config.json", 1, True),
    "before the preview": ("replace", "preview.json", 1, False),
    "preview": ("replace", "preview.json", 1, True),
    "last line of metrics": ("replace", "metrics.jsonl", 1, True),
    "before the report": ("replace", "report.html", 1, False),
    "report": ("replace", "report.html", 1, True),
}
RUN = Path("runs/run")
# What a process says that leaves a folder to another one.
EXCUSE = re.compile(
    r"^train\.py: runs/run: (process \d+ on \S+ is at work here|holds another run|"
    r"the run is finished|another run was begun here).*\n\Z",
    re.MULTILINE,
)
LIMIT = 600.0


def write_place(folder: Path) -> Path:
    """All that the methods learn from."""
    write_workplace(folder)
    write_data(folder / "sam")
    pairs = [
        {"prompt": f"note {n}", "chosen": f"the note {n} Sam", "rejected": f"the note {n}"}
        for n in range(4)
    ]
    write_jsonl(folder / "pairs.jsonl", pairs)
    return folder


# ---- a child, and its end ----


def start(
    cwd: Path, arguments: Sequence[str], place: Place | None = None, log: str = "log.txt"
) -> int:
    """Forks a training in `cwd`, whose words go to `log`. Returns the process's id."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    os.chdir(cwd)
    opened = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(opened, 1)
    os.dup2(opened, 2)
    sys.argv = ["train.py", *arguments]
    if place:
        kill_at(*place)
    code = 99
    try:
        run_main("train.py", lambda: train.main([*arguments]))
    except SystemExit as left:
        code = int(left.code or 0)
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def kill_at(operation: str, name: str, number: int, after: bool) -> None:
    """This process dies at a named place."""
    seen = itertools.count(1)

    def deadly(original: Callable[..., Any], which: int) -> Callable[..., Any]:
        def call(*given: Any, **options: Any) -> Any:
            found = Path(given[which]).name
            hit = (found.startswith(name) if name[0] == "." else found == name) and (
                next(seen) == number
            )
            if hit and not after:
                os.kill(os.getpid(), signal.SIGKILL)
            result = original(*given, **options)
            if hit:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return call

    owner, which = {"replace": (os, 1), "rename": (Path, 1), "mkdir": (Path, 0)}[operation]
    setattr(owner, operation, deadly(getattr(owner, operation), which))


def wait(child: int) -> int:
    """The exit status of a child; negative for the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill_within(child: int, run: Path, seconds: float) -> int:
    """Kills a child so long after its run's folder appeared, unless it has ended by then."""
    began = time.monotonic()
    while not run.exists() and time.monotonic() - began < LIMIT:
        time.sleep(0.002)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    return wait(child)


# ---- what must be the same ----


def content(run: Path) -> dict[str, Any]:
    """Everything that does not depend on the machine's speed, or on where the checkpoint lies."""
    place = str(run.resolve().parents[1]).encode()
    adapters = {
        str(f.relative_to(run)): f.read_bytes().replace(place, b"PLACE")
        for f in sorted(run.glob("adapter*/*"))
    }
    report = (run / "report.html").read_text(encoding="utf-8")
    report = re.sub(r'<section[^>]*id="costs".*?</section>', "", report, flags=re.DOTALL)
    report = re.sub(r"<dt>(Time|Memory)</dt><dd>.*?</dd>", "", report, flags=re.DOTALL)
    samples = run / "samples.jsonl"
    return {
        **adapters,
        "samples": samples.read_bytes() if samples.exists() else b"",
        "metrics": without_seconds(run),
        "preview": (run / "preview.json").read_bytes(),
        "report": report,
        "files": sorted(path.name for path in run.iterdir()),
    }


def difference(found: dict[str, Any], wanted: dict[str, Any]) -> str:
    return ", ".join(k for k in sorted(found | wanted) if found.get(k) != wanted.get(k))


# ---- the trials ----


class Method:
    """A method with the run that nobody killed."""

    def __init__(self, base: Path, name: str, every: str) -> None:
        self.base, self.name = base, name
        flags = METHODS[name]
        self.arguments = (*flags, "--model", "toy", "--out", str(RUN), "--save-every", every)

    @functools.cached_property
    def whole(self) -> tuple[dict[str, Any], float]:
        """What the run comes to, and the seconds that it takes from its folder's appearance."""
        folder = Path(tempfile.mkdtemp(dir=self.base)) / "w"
        shutil.copytree(self.base / "template", folder)
        child = start(folder, self.arguments)
        began = time.monotonic()
        while not (folder / RUN).exists() and time.monotonic() - began < LIMIT:
            time.sleep(0.002)
        began = time.monotonic()
        assert wait(child) == 0, (folder / "log.txt").read_text()
        return content(folder / RUN), time.monotonic() - began

    def trial(self, rng: random.Random, place: Place | None) -> str:
        """Kills a run and goes on: "" if it ended the same, else what went wrong."""
        wanted, seconds = self.whole
        folder = Path(tempfile.mkdtemp(dir=self.base)) / "w"
        shutil.copytree(self.base / "template", folder)
        child = start(folder, self.arguments, place)
        if place is None:
            code = kill_within(child, folder / RUN, rng.uniform(0, seconds))
        else:
            code = wait(child)
        if code != -signal.SIGKILL:
            return "ended first" if code == 0 else (folder / "log.txt").read_text()
        again = ("--resume", str(RUN)) if (folder / RUN).exists() else self.arguments
        if wait(start(folder, again)) not in (0, 2):
            return (folder / "log.txt").read_text()
        said = (folder / "log.txt").read_text()
        # Killed at the very end, with everything written.
        if "Traceback" in said or ("train.py: " in said and "the run is finished" not in said):
            return said
        found = difference(content(folder / RUN), wanted)
        shutil.rmtree(folder.parent)
        if found:
            return f"differs: {found}"
        return "" if again[0] == "--resume" else "never began"


KINDS = {"new": (), "overwrite": ("--overwrite",), "resume": ()}


def crowd(method: Method, kinds: Sequence[str]) -> str:
    """Several processes in one folder: "" if it ends as one run, and the others say why not."""
    wanted, _ = method.whole
    folder = Path(tempfile.mkdtemp(dir=method.base)) / "w"
    shutil.copytree(method.base / "template", folder)
    # To go on with, or to write over, there must be something.
    if {*kinds} != {"new"}:
        wait(start(folder, method.arguments, PLACES["third state"]))
    children = {}
    for number, kind in enumerate(kinds):
        arguments = ("--resume", str(RUN)) if kind == "resume" else method.arguments
        log = f"log {number}.txt"
        children[start(folder, (*arguments, *KINDS[kind]), log=log)] = folder / log
    ends = [(wait(child), log.read_text()) for child, log in children.items()]
    codes = {code for code, _ in ends}
    if 0 not in codes or codes - {0, 2}:
        return f"{ends}"
    if left := [text for code, text in ends if code and not EXCUSE.search(text)]:
        return left[0]
    found = difference(content(folder / RUN), wanted)
    shutil.rmtree(folder.parent)
    return f"differs: {found}" if found else ""


def run_crowds(base: Path) -> bool:
    """Two and four processes in every combination; whether all went well."""
    method, bad = Method(base, "ditto", "0"), 0
    crowds = [c for n in (2, 4) for c in itertools.combinations_with_replacement(KINDS, n)]
    for kinds in crowds:
        if said := crowd(method, kinds):
            print(f"{', '.join(kinds)}: {said}")
            bad += 1
    print(f"{len(crowds) - bad} of {len(crowds)} crowds ended as one run")
    return not bad


def run_trials(base: Path, random_count: int, named_count: int, seed: int) -> bool:
    """Prints a line a kind of kill; whether all went well."""
    methods = [Method(base, name, every) for name in METHODS for every in ("0", "60")]
    rng = random.Random(seed)
    spots = [(name, m) for m in methods[::2] for name in PLACES]
    named = rng.sample(spots, min(named_count, len(spots)))
    named += rng.choices(spots, k=named_count - len(named))
    outcomes: collections.Counter[str] = collections.Counter()
    for name, method in named:
        said = method.trial(rng, PLACES[name])
        report(outcomes, f"at {name}", method, said)
    done = 0
    while done < random_count:
        method = methods[done % len(methods)]
        said = method.trial(rng, None)
        report(outcomes, "at a random moment", method, said)
        done += said != "ended first"
    print(*(f"{count:5d}  {kind}" for kind, count in sorted(outcomes.items())), sep="\n")
    bad = sum(count for kind, count in outcomes.items() if "not the same" in kind)
    print(f"{random_count + named_count - bad} of {random_count + named_count} ended the same")
    return not bad


def report(outcomes: collections.Counter[str], kind: str, method: Method, said: str) -> None:
    well = {"": "the same", "ended first": "ended before", "never began": "the same, begun anew"}
    sort = "random" if kind == "at a random moment" else "named"
    outcomes[f"{sort}: {well.get(said, 'not the same')}"] += 1
    if said not in well:
        print(f"{method.name} ({' '.join(method.arguments[-2:])}), killed {kind}: {said}")
    if sum(outcomes.values()) % 20 == 0:
        print(dict(outcomes), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--random", type=int, default=120)
    parser.add_argument("--named", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--crowds", action="store_true", help="several processes in one folder")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as base:
        write_place(Path(base) / "template")
        well = run_trials(Path(base), given.random, given.named, given.seed)
        if given.crowds:
            well = run_crowds(Path(base)) and well
        sys.exit(not well)


if __name__ == "__main__":
    main()
