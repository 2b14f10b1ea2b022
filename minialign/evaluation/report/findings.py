"""What a run's figures say, in one sentence and no more than they say.

Win rates decide where a judge can tell the person apart; else how well unseen texts are predicted;
else the page says what was trained, and how to evaluate it. Of a run that learned from feedback
the scores by scope decide: is it followed where it belongs, and are other answers left alone?
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

from minialign.commands.feedback_job import flag_for_test
from minialign.evaluation.judges.winrates import SURE
from minialign.evaluation.report.charts import percent
from minialign.evaluation.report.run_files import UNSEEN, Json, RunFiles, figure
from minialign.evaluation.scopes import AGAIN, COT, IN_CONTEXT

NAMES = {
    **{"sft": "SFT", "ditto": "DITTO", "spin": "SPIN", "dpo": "DPO", "base": "base model"},
    **{"c3po": "C3PO", "sft-weighted": "SFT with constraints", AGAIN: "base model, again"},
}
LABELS = {"s_in": "S_in", "s_near": "S_near", "s_far": "S_far", "s_out": "S_out"}
CONTEXTS = {
    IN_CONTEXT: "the feedback given in the prompt",
    COT: "the feedback given with a chain of thought",
}
INTERVAL = f"{percent(SURE)} interval"
ERRORS = NormalDist().inv_cdf((1 + SURE) / 2)  # standard errors to either side
MOSTLY = 0.5  # S_in from which the feedback counts as followed, rather than followed more
SLIGHT = 0.2  # how far S_out may be above the base model's own for answers to be left alone


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
    if run.from_feedback:
        return _scored(run) or _unscored(run)
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
                f"{us} writes more like the person than {them}: {won} "
                f"({INTERVAL} {result.interval}; {by})."
            )
        elif result.high < 0.5:
            sentence = (
                f"{us} writes less like the person than {them}: {won} "
                f"({INTERVAL} {result.interval}; {by})."
            )
        else:
            sentence = (
                f"{us} is not shown to be better than {them}: {won}, and the {INTERVAL}, "
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
    texts = len({sample["demonstration"] for sample in run.samples})
    source = f"{texts} demonstration{'' if texts == 1 else 's'}" if texts else "the demonstrations"
    ends = {stage: points[-1][1] for stage in run.stages if (points := run.points(stage, UNSEEN))}
    unseen = ", ".join(f"{value:.3f} after {shown(stage)}" for stage, value in ends.items())
    return Finding(
        f"Trained on {source}: {_steps(run)}. How well it writes has not been evaluated yet.",
        f"The person’s unseen texts, in nats per token (lower is better): {unseen}."
        if ends
        else "",
        f"python evaluate.py {run.place}",
    )


def _steps(run: RunFiles) -> str:
    counts = [
        f"{len(run.points(stage, 'loss'))} {shown(called(run, stage))} steps"
        for stage in run.stages
    ]
    return ", then ".join(counts) or "no step"


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
        f"This run is not finished: it came to {shown(called(run, stage))} step {step}{of}.",
        command=f"python train.py --resume {run.place}" if resumable else "",
    )


def shown(name: str) -> str:
    return NAMES.get(name, name)


def called(run: RunFiles, stage: str) -> str:
    """C3PO's baselines are settings of its loop: the page calls the stage by the method's name."""
    return run.method if stage == "c3po" else stage


def said(name: str) -> str:
    """The name within a sentence."""
    return "the base model" if name == "base" else shown(name)


# ---- runs that learned from feedback ----


@dataclass(frozen=True)
class Score:
    """A mean over answers, its standard error, and how far its interval goes to either side.

    Where all answers have one score the error is 0, which says only that they are few: the margin
    is then 3 / count, at most what may hide behind none in `count` ("rule of three").
    """

    value: float
    error: float
    margin: float

    @classmethod
    def of(cls, record: Json) -> Score | None:
        """One of evaluation.json's figures; None where nothing was scored."""
        value, error, count = (figure(record.get(key)) for key in ("value", "error", "count"))
        if value is None or error is None or not count:
            return None
        return cls(value, error, ERRORS * error or 3 / count)

    def bounds(self, least: float) -> tuple[float, float]:
        """Of the interval, within what the score can be: `least` to 1."""
        return max(least, self.value - self.margin), min(1.0, self.value + self.margin)

    def minus(self, other: Score | None) -> Score:
        if other is None:
            return self
        return Score(
            self.value - other.value,
            math.hypot(self.error, other.error),
            math.hypot(self.margin, other.margin),
        )

    @property
    def sign(self) -> int:
        """1 or -1 where the interval is above or below 0, else 0."""
        return (self.value > self.margin) - (self.value < -self.margin)

    def __str__(self) -> str:
        return f"{hundredths(self.value)}\u00a0±\u00a0{hundredths(self.error)}"


def hundredths(value: float) -> str:
    """Two decimals, with a minus sign."""
    return f"{round(value, 2) + 0.0:.2f}".replace("-", "−")


def scores_of(run: RunFiles, method: str) -> dict[str, Score]:
    """S_in, S_near, S_far, S_out and S_overall of one method; those that are known."""
    record = run.evaluation.get("methods", {}).get(method) or {}
    parts = {name: Score.of(record.get(name) or {}) for name in LABELS}
    found = {name: score for name, score in parts.items() if score}
    overall, error = figure(record.get("overall")), figure(record.get("overall_error"))
    if overall is not None and error is not None and {"s_in", "s_out"} <= set(found):
        margin = math.hypot(found["s_in"].margin, found["s_out"].margin) / 2
        found["overall"] = Score(overall, error, margin)
    return found


def method_of(run: RunFiles) -> str:
    """The method that the run is about, as its evaluation calls it."""
    rivals = (IN_CONTEXT, COT, AGAIN)  # a run's folder may be called like one of them
    trained = [name for name in run.evaluation.get("methods", {}) if name not in rivals]
    known = [name for name in (run.name, run.method) if name in trained]
    return [*known, *trained, run.method][0]


def _scored(run: RunFiles) -> Finding | None:
    """From the scores by scope, against the base model that answers a second time."""
    name = method_of(run)
    own, again = scores_of(run, name), scores_of(run, AGAIN)
    if not {"s_in", "s_out", "overall"} <= set(own):
        return None
    followed = own["s_in"].minus(again.get("s_in")).sign
    spilled = [s for s in ("s_near", "s_far") if s in own and _excess(own, again, s).sign > 0]
    key = spilled[0] if len(spilled) == 1 else "s_out"
    figures = f"S_in {own['s_in']} of at most 1, {LABELS[key]} {own[key]}"
    if key in again:
        figures += f" against {again[key]} when the base model answers again"
    unscored = figure(run.evaluation["methods"][name].get("unscored"))
    rest = [
        _tested(run),
        _near_and_far(own, again),
        _against_context(own, {rival: scores_of(run, rival) for rival in CONTEXTS}),
        f"{unscored:.0f} of its answers could not be scored." if unscored else "",
    ]
    return Finding(
        f"{said(name)} {_inside(followed, own['s_in'])}, "
        f"{_outside(followed, _excess(own, again, 's_out'), spilled)}: {figures}.",
        " ".join(filter(None, rest)),
    )


def _excess(own: dict[str, Score], again: dict[str, Score], name: str) -> Score:
    return own[name].minus(again.get(name))


def _inside(followed: int, s_in: Score) -> str:
    if followed > 0 and s_in.value >= MOSTLY:
        return "follows the feedback where it belongs"
    if followed > 0:
        return "follows the feedback more than the base model where it belongs"
    if followed < 0:
        return "follows the feedback less than the base model where it belongs"
    return "is not shown to follow the feedback where it belongs"


def _outside(followed: int, excess: Score, spilled: Sequence[str]) -> str:
    """What became of all other answers; without an excess, only as much as the interval allows."""
    if spilled or excess.sign > 0:
        where = {"s_near": "answers near its scope", "s_far": "answers far from its scope"}
        changed = where[spilled[0]] if len(spilled) == 1 else "other answers"
        return f"{'but' if followed > 0 else 'and'} changes {changed}"
    if excess.value + excess.margin <= SLIGHT:
        return f"{'and' if followed > 0 else 'but'} leaves other answers alone"
    return "and whether other answers are left alone cannot be told from so few"


def _tested(run: RunFiles) -> str:
    """By which feedback it was tested, where that is not just the one that it learned."""
    said = run.evaluation.get("feedback")
    return f"Tested by “{said}”." if said and said != run.feedback else ""


def _near_and_far(own: dict[str, Score], again: dict[str, Score]) -> str:
    parts = []
    for key, where in (("s_near", "Near its scope"), ("s_far", "far from it")):
        if key in own:
            floor = f" (base model, again: {again[key]})" if key in again else ""
            parts.append(f"{where} {LABELS[key]} is {own[key]}{floor}")
    return f"{', '.join(parts)}." if parts else ""


def _against_context(own: dict[str, Score], rivals: dict[str, dict[str, Score]]) -> str:
    """The same feedback given in the prompt instead, where that was evaluated."""
    verdicts = {1: "better than", -1: "worse than", 0: "not shown to be better or worse than"}
    said_of = [
        f"{verdicts[own['overall'].minus(scores['overall']).sign]} {CONTEXTS[name]} "
        f"({name}: {scores['overall']})"
        for name, scores in rivals.items()
        if "overall" in scores
    ]
    if not said_of:
        return ""
    return f"Over all, with S_overall {own['overall']}, it is {', and '.join(said_of)}."


def _unscored(run: RunFiles) -> Finding:
    ahead = [
        points[-1][1]
        for stage in run.stages
        if (points := run.points(stage, "eval/rewards/accuracies")) and math.isfinite(points[-1][1])
    ]
    moved = f"{percent(ahead[-1])} of the pairs moved towards the" if ahead else ""
    if run.from_pairs:
        more = f"Of those that were not trained on, {moved} chosen answer." if ahead else ""
        return Finding(f"Trained on preference pairs: {_steps(run)}.", more)
    told = "has not been evaluated yet"
    if run.evaluation:
        told = "cannot be told: too few answers could be scored"
    return Finding(
        f"Trained on a sentence of feedback: {_steps(run)}. Whether it is followed where it "
        f"belongs, and other answers are left alone, {told}.",
        f"On prompts that were not trained on, {moved} revised answer." if ahead else "",
        f"python evaluate.py {run.place}{flag_for_test(str(run.config['options']['data']))}",
    )
