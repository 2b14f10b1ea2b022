"""What a run's figures say, in one sentence and no more than they say.

Win rates decide where a judge can tell the person apart; else how well unseen texts are predicted;
else the page says what was trained, and how to evaluate it. Of a run that learned from feedback
the scores by scope decide: is it followed where it belongs, and are other answers left alone?
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from minialign.data.records import DEMONSTRATIONS, PAIRS
from minialign.evaluation.names import AGAIN, BASE, COT, IN_CONTEXT
from minialign.evaluation.report.axes import percent
from minialign.evaluation.report.duels import INTERVAL, contestant_of, duels_of
from minialign.evaluation.report.labels import rank, said, stage_title
from minialign.evaluation.report.run_files import RunFiles, figure, usual_evaluation
from minialign.evaluation.report.scores import LABELS, Score, method_of, scores_of
from minialign.methods.cards import UNSEEN
from minialign.training.collapse import KEPT_UNSEEN, NOTE, WARNINGS

CONTEXTS = {
    IN_CONTEXT: "the feedback given in the prompt",
    COT: "the feedback given with a chain of thought",
}
# S_in from which the feedback counts as followed, rather than followed more
MOSTLY = 0.5
# how far S_out may be above the base model's own for answers to be left alone
SLIGHT = 0.2


@dataclass(frozen=True)
class Finding:
    """The page's first sentence, what else belongs to it, and the command to go on with."""

    sentence: str
    more: str = ""
    command: str = ""


def find(run: RunFiles) -> Finding:
    """What the figures say, and no more."""
    if not run.summary and not run.trained:
        return _unfinished(run)
    if run.source == DEMONSTRATIONS:
        return _judged(run) or _measured(run) or _unjudged(run)
    return _scored(run) or _unscored(run)


def notes(run: RunFiles) -> list[str]:
    """Warnings of a collapse, and how stages ended, a sentence each."""
    found = []
    for line in run.metrics:
        warnings, note = line.get(WARNINGS), line.get(NOTE)
        texts = [f"warning: {text}" for text in warnings] if isinstance(warnings, list) else []
        step = f", step {line['step'] + 1}" if "step" in line else ""
        title = stage_title(run, line["stage"])
        found += [f"{title}{step}: {text}." for text in (*texts, *([note] if note else []))]
    return found


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
            sentence = f"{us} against {them}: {won} ({by}; too few prompts for an interval)."
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
        more = [f"It won {rest}." if rest else "", _fluency(run, own)]
        return Finding(sentence, " ".join(filter(None, more)))
    return None


def _fluency(run: RunFiles, own: str) -> str:
    """The other half of a voice: how well formed the answers are in the base model's eyes."""
    entries = {**run.evaluation.get("contestants", {}), "": run.evaluation.get("person") or {}}
    found = {
        name: value
        for name, entry in entries.items()
        if (value := figure(entry.get("fluency"))) is not None
    }
    if own not in found or len(found) == 1:
        return ""
    known = {BASE: "on its own answers", "": "on the person’s texts"}
    rest = " and ".join(
        f"{found[name]:.2f} {said}" for name, said in known.items() if name in found
    )
    return f"Fluency, in the base model’s nats per token: {found[own]:.2f} on its answers, {rest}."


def _measured(run: RunFiles) -> Finding | None:
    """Without win rates: how well the person's unseen texts are predicted."""
    own = contestant_of(run)
    nats = {
        name: value
        for name, entry in run.evaluation.get("contestants", {}).items()
        if (value := figure(entry.get("nats_per_token"))) is not None
    }
    rivals = sorted((name for name in nats if name != own), key=rank)
    if own not in nats or not rivals:
        return None
    # less than .01 is nothing to speak of
    difference = round(nats[own] - nats[rivals[0]], 2)
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
    ends = {
        stage: points[-1][1]
        for stage in run.stages
        if (points := run.points(stage, KEPT_UNSEEN) or run.points(stage, UNSEEN))
    }
    unseen = ", ".join(
        f"{value:.3f} after {stage_title(run, stage)}" for stage, value in ends.items()
    )
    return Finding(
        f"Trained on {source}: {_steps(run)}. How well it writes has not been evaluated yet.",
        f"The person’s unseen texts, in nats per token (lower is better): {unseen}."
        if ends
        else "",
        usual_evaluation(run),
    )


def _steps(run: RunFiles) -> str:
    counts = [
        f"{len(run.points(stage, 'loss'))} {stage_title(run, stage)} steps" for stage in run.stages
    ]
    return ", then ".join(counts) or "no step"


def _unfinished(run: RunFiles) -> Finding:
    if not run.stages:
        return Finding("This run has not taken a step yet.")
    stage = run.stages[-1]
    total = _most_steps(run, stage)
    of = f" of {total:.0f}" if total else ""
    resumable = (run.folder / "state" / "state.safetensors").exists()
    step = len(run.points(stage, "loss"))
    return Finding(
        f"This run is not finished: it came to {stage_title(run, stage)} step {step}{of}.",
        command=f"python train.py --resume {run.place}" if resumable else "",
    )


def _most_steps(run: RunFiles, stage: str) -> float | None:
    """The knob that says how many steps a stage takes at most, where there is one."""
    known, value = run.stage(stage), run.config["knobs"]
    for name in known.steps if known else ():
        value = value.get(name) if isinstance(value, dict) else None
    return figure(value)


# ---- runs that learned from feedback ----


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
    if run.source == PAIRS:
        more = f"Of those that were not trained on, {moved} chosen answer." if ahead else ""
        return Finding(f"Trained on preference pairs: {_steps(run)}.", more)
    told = "has not been evaluated yet"
    if run.evaluation:
        told = "cannot be told: too few answers could be scored"
    return Finding(
        f"Trained on a sentence of feedback: {_steps(run)}. Whether it is followed where it "
        f"belongs, and other answers are left alone, {told}.",
        f"On prompts that were not trained on, {moved} revised answer." if ahead else "",
        usual_evaluation(run),
    )
