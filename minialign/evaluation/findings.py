"""What a run's figures say, in one sentence and no more than they say.

Win rates decide where a judge can tell the person apart; else how well unseen texts are predicted;
else the page says what was trained, and how to evaluate it.
"""

from __future__ import annotations

from dataclasses import dataclass

from minialign.evaluation.charts import percent
from minialign.evaluation.run_files import UNSEEN, Json, RunFiles, figure

NAMES = {"sft": "SFT", "ditto": "DITTO", "spin": "SPIN", "dpo": "DPO", "base": "base model"}


@dataclass(frozen=True)
class Finding:
    """The page's first sentence, what else belongs to it, and the command to go on with."""

    sentence: str
    more: str = ""
    command: str = ""


@dataclass(frozen=True)
class Duel:
    """The share of comparisons that one contestant won against another, in one judge's eyes."""

    rate: float
    low: float | None
    high: float | None

    @property
    def interval(self) -> str:
        if self.low is None or self.high is None:
            return ""
        return f"{100 * self.low:.0f} to {percent(self.high)}"

    def __str__(self) -> str:
        return percent(self.rate) + (f" ({self.interval})" if self.interval else "")


def find(run: RunFiles) -> Finding:
    """What the figures say, and no more."""
    if not run.summary and not run.trained:
        return _unfinished(run)
    return _judged(run) or _measured(run) or _unjudged(run)


def duel(record: Json, turned: bool = False) -> Duel | None:
    """A judge's figures; None where there is no rate. `turned` gives them from the other side."""
    rate, low, high = (figure(record.get(key)) for key in ("rate", "low", "high"))
    if rate is None:
        return None
    if not turned:
        return Duel(rate, low, high)
    return Duel(1 - rate, None if high is None else 1 - high, None if low is None else 1 - low)


def duels_of(judge: Json, own: str) -> dict[str, tuple[Duel, Json]]:
    """rival -> the figures of `own` against it, and the record that they are from."""
    found = {}
    for win in judge.get("wins") or []:
        sides = (win.get("first"), win.get("second"))
        if own in sides and (own_duel := duel(win, turned=sides[1] == own)):
            found[sides[sides[0] == own]] = (own_duel, win)
    return dict(sorted(found.items(), key=lambda item: _rank(item[0])))


def _rank(rival: str) -> int:
    """SFT is the rival that counts, then the base model, then whoever else was evaluated."""
    return {"sft": 0, "base": 1}.get(rival, 2)


def contestant_of(run: RunFiles) -> str:
    """The contestant that the run is about."""
    names = list(run.evaluation.get("contestants", {}))
    return run.method if run.method in names or not names else names[-1]


def _judged(run: RunFiles) -> Finding | None:
    """From the first judge that can tell the person apart and has compared the two."""
    own = contestant_of(run)
    for judge in run.evaluation.get("judges") or []:
        duels = duels_of(judge, own)
        if not judge.get("can_judge") or not duels:
            continue
        rival, (result, record) = next(iter(duels.items()))
        prompts = len(run.evaluation["prompts"])
        won = (
            f"its answers won {percent(result.rate)} of {record.get('comparisons') or 'the'} "
            f"comparisons on {prompts} unseen prompt{'' if prompts == 1 else 's'}"
        )
        by = f"judge: {judge.get('name', 'unnamed')}"
        us, them = said(own), said(rival)
        if result.low is None or result.high is None:
            sentence = f"{us} against {them}: {won} ({by}; without an interval)."
        elif result.low > 0.5:
            sentence = (
                f"{us} writes more like the person than {them}: {won} ({result.interval}; {by})."
            )
        elif result.high < 0.5:
            sentence = (
                f"{us} writes less like the person than {them}: {won} ({result.interval}; {by})."
            )
        else:
            sentence = (
                f"{us} is not shown to be better than {them}: {won}, and the interval, "
                f"{result.interval}, includes an even {percent(0.5)} ({by})."
            )
        rest = " and ".join(
            f"{other} against {said(name)}" for name, (other, _) in list(duels.items())[1:]
        )
        return Finding(sentence, f"It won {rest}." if rest else "")
    return None


def _measured(run: RunFiles) -> Finding | None:
    """Without win rates: how well the person's unseen texts are predicted."""
    own = contestant_of(run)
    nats = {
        name: value
        for name, entry in run.evaluation.get("contestants", {}).items()
        if (value := figure(entry.get("nats_per_token"))) is not None
    }
    rivals = sorted((name for name in nats if name != own), key=_rank)
    if own not in nats or not rivals:
        return None
    difference = round(nats[own] - nats[rivals[0]], 2)  # less than .01 is nothing to speak of
    verdict = (
        "better than" if difference < 0 else "worse than" if difference > 0 else "no better than"
    )
    rest = "".join(f"; {said(name)} {nats[name]:.3f}" for name in rivals[1:])
    return Finding(
        f"{said(own)} predicts the person’s unseen texts {verdict} {said(rivals[0])}: "
        f"{nats[own]:.3f} against {nats[rivals[0]]:.3f} nats per token (lower is better{rest}).",
        "No judge compared the answers, or none could tell the person apart: there is no win rate.",
    )


def _unjudged(run: RunFiles) -> Finding:
    counts = [f"{len(run.points(stage, 'loss'))} {shown(stage)} steps" for stage in run.stages]
    texts = len({sample["demonstration"] for sample in run.samples})
    source = f"{texts} demonstration{'' if texts == 1 else 's'}" if texts else "the demonstrations"
    ends = {stage: points[-1][1] for stage in run.stages if (points := run.points(stage, UNSEEN))}
    unseen = ", ".join(f"{value:.3f} after {shown(stage)}" for stage, value in ends.items())
    return Finding(
        f"Trained on {source}: {', then '.join(counts) or 'no step'}. "
        "How well it writes has not been evaluated yet.",
        f"The person’s unseen texts, in nats per token (lower is better): {unseen}."
        if ends
        else "",
        f"python evaluate.py {run.place}",
    )


def _unfinished(run: RunFiles) -> Finding:
    if not run.stages:
        return Finding("This run has not taken a step yet.")
    stage = run.stages[-1]
    knobs = run.config["knobs"]
    total = (knobs.get("sft") or {}).get("max_steps") if stage == "sft" else knobs.get("max_steps")
    of = f" of {total}" if total else ""
    resumable = (run.folder / "state" / "state.safetensors").exists()
    step = len(run.points(stage, "loss"))
    return Finding(
        f"This run is not finished: it came to {shown(stage)} step {step}{of}.",
        command=f"python train.py --resume {run.place}" if resumable else "",
    )


def shown(name: str) -> str:
    return NAMES.get(name, name)


def said(name: str) -> str:
    """The name within a sentence."""
    return "the base model" if name == "base" else shown(name)
