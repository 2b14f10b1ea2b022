"""DITTO: show, don't tell (Shaikh et al. 2024, arXiv 2406.00888, Algorithm 1).

Train on the demonstrations a little (SFT). Then, in rounds, let the model write its own answers and
teach it to prefer, with DPO, the demonstrations over its newest samples, those over its older ones.
The reference of DPO is the SFT model, frozen for good: updating it each round costs 24 points of
win rate (Table 3).

Where this differs from the paper or from the official code (SALT-NLP/demonstrated-feedback):

* Comparisons belong to a demonstration, not to a prompt's text; demonstrations that share a prompt
  all take part.
* A sample is trained on exactly the token ids that were drawn, and one that was cut off at the
  length limit has no end token. The official code decodes, encodes again, and tells by the length.
* The end token of the demonstrations is trained in SFT (the official code masks it together with
  the padding).
* The comparisons of a step are distinct, and every demonstration takes its turn.
* All fractions, M and K are knobs that work.
* `update_reference`, off, is the ablation that the paper warns of: the reference follows the policy
  at every new round. SPIN (spin.py) needs it.
* `anchors`, none unless asked for, keep the policy near the base model elsewhere (anchors.py).
* `nll_weight`, 0 as in the paper unless asked for (the laptop recipe has .5), adds the
  demonstrations' own loss, which keeps DPO from lowering the chosen texts along with the rejected.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterable, Iterator
from collections.abc import Sequence as Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from minialign.data.files import read_jsonl
from minialign.data.records import Example
from minialign.losses import dpo_loss, sft_loss
from minialign.methods.anchors import Anchors
from minialign.methods.cards import UNSEEN
from minialign.methods.knobs import DittoConfig
from minialign.methods.lessons import Work
from minialign.methods.pool import Comparison, ComparisonPool, shares
from minialign.methods.sft import ADAPTER as SFT
from minialign.methods.sft import Demonstrated
from minialign.methods.sft import train as train_sft
from minialign.methods.sft import work as sft_work
from minialign.model.transformer import CausalLM
from minialign.policy.adapters import (
    copy_adapter,
    remove_adapter,
    train_only,
    trainable_parameters,
)
from minialign.policy.measure import nats_per_token, rollout_gap
from minialign.policy.packing import distinct_tokens, micro_batches
from minialign.policy.peft import adapter_state, load_adapter, load_adapter_state
from minialign.policy.reference_scores import ReferenceScores
from minialign.policy.sample import Completion
from minialign.policy.score import score
from minialign.training import ranks
from minialign.training.collapse import answer_figures
from minialign.training.folder import STAGE_ADAPTER, lines_of_stages
from minialign.training.optimizer import Optimizer, constant_with_warmup
from minialign.training.rollouts import rollouts
from minialign.training.run import Run
from minialign.training.state import Parts
from minialign.weights.devices import pick_precision

ADAPTER = "ditto"
# With `update_reference`: what the policy was when the round began.
FOLLOWER = "reference"
SAMPLES = "samples.jsonl"
OFF_POLICY = "rollouts/nats_from_policy"
# An adapter of a run that is continued, until its numbers are taken over.
FINISHED = "finished"


def train(
    model: CausalLM,
    lessons: Demonstrated,
    knobs: DittoConfig,
    run: Run,
    anchors: Anchors | None = None,
    name: str = ADAPTER,
) -> None:
    """Trains a new adapter `name` on a model whose active adapter is a fresh "sft"; in place.

    Both stay in the model, the new one active. Samples, metrics and what `--resume` needs are kept
    in `run`. `anchors` are written here if `knobs.anchors` asks for them and none are handed over.
    """
    if anchors is None:
        anchors = Anchors.written(model, knobs.anchors, knobs.max_length, run)
    train_sft(model, lessons, knobs, run, anchors)
    if knobs.update_reference:
        copy_adapter(model, SFT, FOLLOWER)
    copy_adapter(model, SFT, name)
    reference = ReferenceScores(model, FOLLOWER if knobs.update_reference else SFT)
    pool = ComparisonPool(lessons.train)
    optimizer = Optimizer(
        trainable_parameters(model),
        knobs.learning_rate,
        constant_with_warmup,
        total_steps=knobs.max_steps,
        warmup_ratio=knobs.warmup_ratio,
        weight_decay=knobs.weight_decay,
        max_grad_norm=knobs.max_grad_norm,
    )
    parts = Parts(model, optimizer=optimizer, pool=pool, reference=reference)
    first = run.restore(name, parts) or 0
    # No dropout: the policy must be comparable with its reference.
    model.eval()
    written: dict[str, float] = {}
    for step in run.steps(name, first, knobs.max_steps, parts):
        if len(pool.rounds) <= step // knobs.resample_every:
            if knobs.update_reference:
                load_adapter_state(model, FOLLOWER, adapter_state(model, name), name)
            with run.phase("sample"):
                answers = _sample_round(model, pool, knobs, run)
                written = _rollout_metrics(model, pool, answers, knobs, run)
                pool.add_round(answers)
            run.write_lines(SAMPLES, pool.records(reference, run.tokenizer))
            # Answers are what takes longest.
            run.save()
        rng = random.Random(f"{run.seed}/pairs/{step}")
        pairs = pool.draw(knobs.pairs_per_step, knobs.mix, rng)
        with run.phase("train"):
            metrics = preference_step(model, pairs, reference, knobs, run.micro_batch_tokens)
            metrics |= anchors.backward(model, name, step, run) | optimizer.step(step) | written
        if step % knobs.resample_every == 0:
            metrics |= answer_figures(pool.newest)
        ends_round = (step + 1) % knobs.resample_every == 0 or run.is_last
        if ends_round:
            metrics |= _held_out_metrics(model, lessons.held_out, reference, knobs, run)
        run.log(name, step, metrics)
        if ends_round:
            run.say(f"round {len(pool.rounds)}", _summary(pool, metrics), metrics.get(UNSEEN))
    run.write_lines(SAMPLES, pool.records(reference, run.tokenizer))


def _sample_round(
    model: CausalLM, pool: ComparisonPool, knobs: DittoConfig, run: Run
) -> list[list[Completion]]:
    prompts = [demonstration.prompt_ids for demonstration in pool.demonstrations]
    seed = run.derive_seed("round", len(pool.rounds))
    return rollouts(
        model,
        prompts,
        knobs.samples_per_prompt,
        knobs.sampling,
        run,
        seed=seed,
        on_token=run.sampling_progress(
            len(pool.rounds) + 1, len(prompts) * knobs.samples_per_prompt
        ),
    )


def _rollout_metrics(
    model: CausalLM,
    pool: ComparisonPool,
    answers: list[list[Completion]],
    knobs: DittoConfig,
    run: Run,
) -> dict[str, float]:
    """How far the rollouts lie from the policy, where they were computed in another type."""
    width, name = model.config.hidden_size, knobs.sampling.rollout_dtype
    if pick_precision(name, model.device, width) == "model":
        return {}
    prompts = [demonstration.prompt_ids for demonstration in pool.demonstrations]
    return {OFF_POLICY: rollout_gap(model, prompts, answers, run.micro_batch_tokens)}


class Piece(NamedTuple):
    """Comparisons that are computed together, and the texts in them, each once."""

    pairs: list[Comparison]
    texts: list[Example]
    # the demonstrations among them whose own loss is counted here
    shown: list[Example]


class PieceLosses(NamedTuple):
    """The demonstrations' own loss, a scalar; of each pair, (P,); of each text's reference."""

    nll: Tensor
    losses: Tensor
    chosen_rewards: Tensor
    rejected_rewards: Tensor
    chosen_logps: Tensor
    rejected_logps: Tensor
    reference_logps: Tensor


def preference_step(
    model: CausalLM,
    pairs: list[Comparison],
    reference: ReferenceScores,
    knobs: DittoConfig,
    micro_batch_tokens: int,
) -> dict[str, float]:
    """Accumulates the gradient of a step, part by part; returns its metrics."""
    if not pairs:  # every sample equals its demonstration: nothing is left to learn from this round
        return {"loss": 0.0, "tokens": 0}
    shown = {pair.chosen for pair in pairs if pair.kind != "inter_model"}
    shown_tokens = sum(len(sequence.completion_ids) for sequence in shown)

    def learn(piece: Piece) -> PieceLosses:
        reference_logps, policy_logps = reference(piece.texts), score(model, piece.texts)
        place = {sequence: i for i, sequence in enumerate(piece.texts)}
        chosen = [place[pair.chosen] for pair in piece.pairs]
        rejected = [place[pair.rejected] for pair in piece.pairs]
        logps = policy_logps[chosen], policy_logps[rejected]
        preference = dpo_loss(
            *logps,
            reference_logps[chosen],
            reference_logps[rejected],
            beta=knobs.beta,
            label_smoothing=knobs.label_smoothing,
        )
        own = policy_logps[[place[sequence] for sequence in piece.shown]]
        nll = sft_loss(own, max(1, shown_tokens))
        (preference.losses.sum() / len(pairs) + knobs.nll_weight * nll).backward()
        return PieceLosses(*map(Tensor.detach, (nll, *preference, *logps, reference_logps)))

    batches = micro_batches(pairs, lambda pair: (pair.chosen, pair.rejected), micro_batch_tokens)
    pieces = list(_pieces(batches, shown))
    found = [PieceLosses(*losses) for losses in ranks.divided(learn, pieces)]
    for piece, losses in zip(pieces, found, strict=True):
        reference.note(piece.texts, losses.reference_logps)
    return _metrics(pairs, found, knobs)


def _pieces(batches: Iterable[list[Comparison]], shown: set[Example]) -> Iterator[Piece]:
    """Where a prompt's texts are cut, a demonstration stands in each piece, and counts in one."""
    for pairs in batches:
        texts = list(dict.fromkeys(s for pair in pairs for s in (pair.chosen, pair.rejected)))
        yield Piece(pairs, texts, [text for text in texts if text in shown])
        shown = shown - {*texts}


def _metrics(
    pairs: list[Comparison], pieces: list[PieceLosses], knobs: DittoConfig
) -> dict[str, float]:
    """Of a whole step."""
    nll, *others, _ = zip(*pieces, strict=True)
    losses, chosen_rewards, rejected_rewards, chosen_logps, rejected_logps = map(torch.cat, others)
    margins = chosen_rewards - rejected_rewards
    return {
        "loss": float(losses.mean()),  # DPO's: ln 2 at the first step, whatever else is added
        "nll/demonstrations": float(sum(nll)),  # counts nll_weight times
        "rewards/chosen": float(chosen_rewards.mean()),
        "rewards/rejected": float(rejected_rewards.mean()),
        "rewards/margins": float(margins.mean()),
        "rewards/accuracies": float((margins > 0).float().mean()),
        "logps/chosen": float(chosen_logps.mean()),
        "logps/rejected": float(rejected_logps.mean()),
        "tokens": distinct_tokens(s for pair in pairs for s in (pair.chosen, pair.rejected)),
        **{f"pairs/{kind}": sum(pair.kind == kind for pair in pairs) for kind in knobs.mix},
    }


def _held_out_metrics(
    model: CausalLM,
    held_out: Sequence[Example],
    reference: ReferenceScores,
    knobs: DittoConfig,
    run: Run,
) -> dict[str, float]:
    """Training pairs are soon told apart by heart; unseen texts show what was learned."""
    if not held_out:
        return {}
    tokens = sum(len(sequence.completion_ids) for sequence in held_out)
    nats = nats_per_token(model, held_out, run.micro_batch_tokens)
    assert nats is not None
    parts = micro_batches(held_out, lambda sequence: (sequence,), run.micro_batch_tokens)
    reference_sum = sum(float(reference(part).sum()) for part in parts)
    reward = knobs.beta * (-nats * tokens - reference_sum) / len(held_out)
    return {UNSEEN: nats, "eval/rewards": reward}


def _summary(pool: ComparisonPool, metrics: dict[str, float]) -> str:
    """What a person wants to know of a round."""
    answers = pool.newest
    ended = sum(answer.finish_reason == "stop" for answer in answers)
    margin = metrics.get("rewards/margins", 0.0)
    gap = metrics.get(OFF_POLICY)
    written = "" if gap is None else f", {gap:.3f} nats a token from the policy"
    return (
        f"{len(answers)} answers, {ended} of them ended by themselves{written}; "
        f"loss {metrics['loss']:.2f}, margin {margin:.2f}"
    )


# ---- a finished run that learns from more demonstrations ----


def prolonged(knobs: DittoConfig) -> DittoConfig:
    """With one round more."""
    return dataclasses.replace(knobs, max_steps=(knobs.rounds + 1) * knobs.resample_every)


def take_over(
    model: CausalLM, lessons: Demonstrated, knobs: DittoConfig, run: Run, finished: Path
) -> None:
    """Begins `run` where the run in the folder `finished` ended, for `train` to go on from there.

    Adapters, samples and what the reference says of them are taken over, and the lines of metrics;
    the moments of the optimizer were not kept. The last round of `knobs` is still to come.
    """
    copy_adapter(model, SFT, ADAPTER)
    for name, folder in ((SFT, f"{STAGE_ADAPTER}{SFT}"), (ADAPTER, "adapter")):
        load_adapter(model, finished / folder, FINISHED)
        load_adapter_state(model, name, adapter_state(model, FINISHED), str(finished))
    remove_adapter(model, FINISHED)
    train_only(model, SFT)
    pool, reference = ComparisonPool(lessons.train), ReferenceScores(model, SFT)
    lines = [line for _, line in read_jsonl(finished / SAMPLES)]
    reference.known.update(pool.load_records(lines))
    first = knobs.max_steps - knobs.resample_every
    # A run may have ended before its last round.
    while len(pool.rounds) < first // knobs.resample_every:
        pool.add_round([[] for _ in lessons.train])
    run.begin_at(
        ADAPTER,
        first,
        Parts(model, pool=pool, reference=reference),
        lines_of_stages(finished),
    )


def work_of_more(lessons: Demonstrated, knobs: DittoConfig, tokens: int) -> Work:
    """`work` of the round that is still to come."""
    sft = dataclasses.replace(knobs.sft, max_steps=0)
    found = work(
        lessons, dataclasses.replace(knobs, sft=sft, max_steps=knobs.resample_every), tokens
    )
    return dataclasses.replace(found, stages=found.stages[1:])


def work(lessons: Demonstrated, knobs: DittoConfig, tokens: int, title: str = "DITTO") -> Work:
    """`tokens` are those that a micro-batch may hold."""
    warm_start, demonstrations = sft_work(lessons, knobs, tokens), lessons.train
    mean, new = sum(map(len, demonstrations)) / len(demonstrations), knobs.sampling.max_new_tokens
    samples = len(demonstrations) * knobs.samples_per_prompt
    written = knobs.rounds * samples * new
    texts = min(len(demonstrations), knobs.pairs_per_step) * mean + knobs.pairs_per_step * new
    compared = round(knobs.max_steps * texts)
    rounds = f"{knobs.rounds} rounds of {samples} answers of at most {new} tokens;"
    steps = (
        f"{knobs.max_steps} steps of {knobs.pairs_per_step} comparisons, "
        f"learning rate {knobs.learning_rate:g}, beta {knobs.beta:g}"
    )
    return dataclasses.replace(
        warm_start,
        read=warm_start.read + compared,
        referred=min(written, compared),
        largest=max(warm_start.largest, tokens_in_flight(demonstrations, knobs, tokens)),
        written=written,
        samples=samples,
        longest=max(len(sequence.prompt_ids) for sequence in demonstrations) + new,
        sampling=knobs.sampling,
        references=1,
        stages=[*warm_start.stages, (title, rounds), ("", steps)],
        steps=knobs.max_steps,
        first=warm_start,
        tokens=f"{warm_start.tokens}, at most {written:,} written and {compared:,} compared",
    )


def tokens_in_flight(demonstrations: Sequence[Example], knobs: DittoConfig, budget: int) -> int:
    """Of a step's largest part, were all answers as long as they may be.

    By counting, since no answer is there yet: what `micro_batches` makes of the prompts' texts.
    """
    new, written, total = knobs.sampling.max_new_tokens, knobs.samples_per_prompt, 0
    older = written * (knobs.rounds - 1)
    counts = shares(knobs.pairs_per_step, list(knobs.mix.values()))
    # Demonstrations take turns in each kind; the first of them gets the most of all.
    dealt: dict[tuple[int, ...], list[tuple[int, int, int]]] = {}
    for place, demonstration in enumerate(demonstrations):
        expert, replay, inter = (
            count // len(demonstrations) + (place < count % len(demonstrations)) for count in counts
        )
        # In the last kind two answers are compared.
        answers = min(expert, written) + min(replay, older) + 2 * inter * bool(older)
        text = len(demonstration.completion_ids) * bool(expert or replay)
        dealt.setdefault(demonstration.prompt_ids, []).append((text, answers, inter * bool(older)))
    largest = 0
    for prompt, texts in dealt.items():
        longest = len(prompt) + max(text for text, _, _ in texts)
        whole = len(prompt) + sum(text + answers * new for text, answers, _ in texts)
        fit = max(1, (2 * budget - longest) // max(1, new))
        item = len(prompt) + 2 * new * any(inter for *_, inter in texts)
        size = min(whole, max(longest + fit * new, item))
        total = total + size if total + size <= budget else size
        largest = max(largest, total)
    return largest
