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

import random
from collections.abc import Sequence as SequenceABC

import torch
from torch import Tensor

from minialign.data.records import Sequence
from minialign.losses import dpo_loss, sft_loss
from minialign.methods.anchors import Anchors
from minialign.methods.knobs import DittoConfig
from minialign.methods.pool import Comparison, ComparisonPool
from minialign.methods.sft import ADAPTER as SFT
from minialign.methods.sft import NO_ANCHORS, nats_per_token, train_sft
from minialign.model.transformer import CausalLM
from minialign.policy.adapters import copy_adapter, trainable_parameters
from minialign.policy.packing import distinct_tokens, micro_batches
from minialign.policy.peft import adapter_state, load_adapter_state
from minialign.policy.reference_scores import ReferenceScores
from minialign.policy.sample import sample
from minialign.policy.score import score
from minialign.training.optimizer import Optimizer, constant_with_warmup
from minialign.training.run import Run
from minialign.training.state import Parts

ADAPTER = "ditto"
FOLLOWER = "reference"  # with `update_reference`: what the policy was when the round began
UNSEEN = "eval/nats_per_token"


def train_ditto(
    model: CausalLM,
    demonstrations: SequenceABC[Sequence],
    config: DittoConfig,
    run: Run,
    held_out: SequenceABC[Sequence] = (),
    anchors: Anchors = NO_ANCHORS,
    name: str = ADAPTER,
) -> None:
    """Trains a new adapter `name` on a model whose active adapter is a fresh "sft"; in place.

    Both stay in the model, the new one active. Samples, metrics and what `--resume` needs are kept
    in `run`.
    """
    train_sft(model, demonstrations, config, run, held_out, anchors)
    if config.update_reference:
        copy_adapter(model, SFT, FOLLOWER)
    copy_adapter(model, SFT, name)
    reference = ReferenceScores(model, FOLLOWER if config.update_reference else SFT)
    pool = ComparisonPool(demonstrations)
    optimizer = Optimizer(
        trainable_parameters(model),
        config.learning_rate,
        constant_with_warmup,
        total_steps=config.max_steps,
        warmup_ratio=config.warmup_ratio,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
    )
    parts = Parts(model, optimizer, pool, reference)
    first = run.restore(name, parts) or 0
    model.eval()  # no dropout: the policy must be comparable with its reference
    for step in run.steps(name, first, config.max_steps, parts):
        if len(pool.rounds) <= step // config.resample_every:
            if config.update_reference:
                load_adapter_state(model, FOLLOWER, adapter_state(model, name), name)
            with run.phase("sample"):
                pool.add_round(_sample_round(model, pool, config, run))
            run.write_samples(pool, reference)
        pairs = pool.draw(
            config.pairs_per_step, config.mix, random.Random(f"{run.seed}/pairs/{step}")
        )
        with run.phase("train"):
            metrics = preference_step(model, pairs, reference, config, run.micro_batch_tokens)
            metrics |= anchors.backward(model, name, step, run) | optimizer.step(step)
        ends_round = (step + 1) % config.resample_every == 0 or step + 1 == config.max_steps
        if ends_round:
            metrics |= _held_out_metrics(model, held_out, reference, config, run)
        run.log(name, step, metrics)
        if ends_round:
            run.say(f"round {len(pool.rounds)}", _summary(pool, metrics), metrics.get(UNSEEN))
    run.write_samples(pool, reference)


def _sample_round(
    model: CausalLM, pool: ComparisonPool, config: DittoConfig, run: Run
) -> list[list]:
    prompts = [demonstration.prompt_ids for demonstration in pool.demonstrations]
    seed = run.derive_seed("round", len(pool.rounds))
    return sample(
        model,
        prompts,
        config.samples_per_prompt,
        config.sampling,
        seed=seed,
        on_token=run.sampling_progress(
            len(pool.rounds) + 1, len(prompts) * config.samples_per_prompt
        ),
    )


def preference_step(
    model: CausalLM,
    pairs: list[Comparison],
    reference: ReferenceScores,
    config: DittoConfig,
    micro_batch_tokens: int,
) -> dict[str, float]:
    """Accumulates the gradient of a step, part by part; returns its metrics."""
    if not pairs:  # every sample equals its demonstration: nothing is left to learn from this round
        return {"loss": 0.0, "tokens": 0}
    shown = {pair.chosen for pair in pairs if pair.kind != "inter_model"}
    shown_tokens = sum(len(sequence.completion_ids) for sequence in shown)
    parts: list[tuple[Tensor, ...]] = []
    nll = 0.0
    for part in micro_batches(pairs, lambda pair: (pair.chosen, pair.rejected), micro_batch_tokens):
        sequences = list(dict.fromkeys(s for pair in part for s in (pair.chosen, pair.rejected)))
        place = {sequence: i for i, sequence in enumerate(sequences)}
        chosen = [place[pair.chosen] for pair in part]
        rejected = [place[pair.rejected] for pair in part]
        reference_logps = reference(sequences)
        policy_logps = score(model, sequences)
        preference = dpo_loss(
            policy_logps[chosen],
            policy_logps[rejected],
            reference_logps[chosen],
            reference_logps[rejected],
            beta=config.beta,
            label_smoothing=config.label_smoothing,
        )
        loss = preference.losses.sum() / len(pairs)
        if shown_tokens:
            own = [place[sequence] for sequence in sequences if sequence in shown]
            shown -= {*sequences}  # where a prompt's texts are cut, a demonstration stands in each
            part_nll = sft_loss(policy_logps[own], shown_tokens)
            loss = loss + config.nll_weight * part_nll
            nll += part_nll.item()
        loss.backward()
        parts.append(
            (
                *map(Tensor.detach, preference),
                policy_logps[chosen].detach(),
                policy_logps[rejected].detach(),
            )
        )
    losses, chosen_rewards, rejected_rewards, chosen_logps, rejected_logps = map(
        torch.cat, zip(*parts, strict=True)
    )
    margins = chosen_rewards - rejected_rewards
    return {
        "loss": float(losses.mean()),  # DPO's: ln 2 at the first step, whatever else is added
        "nll/demonstrations": nll,  # counts nll_weight times
        "rewards/chosen": float(chosen_rewards.mean()),
        "rewards/rejected": float(rejected_rewards.mean()),
        "rewards/margins": float(margins.mean()),
        "rewards/accuracies": float((margins > 0).float().mean()),
        "logps/chosen": float(chosen_logps.mean()),
        "logps/rejected": float(rejected_logps.mean()),
        "tokens": distinct_tokens(s for pair in pairs for s in (pair.chosen, pair.rejected)),
        **{f"pairs/{kind}": sum(pair.kind == kind for pair in pairs) for kind in config.mix},
    }


def _held_out_metrics(
    model: CausalLM,
    held_out: SequenceABC[Sequence],
    reference: ReferenceScores,
    config: DittoConfig,
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
    reward = config.beta * (-nats * tokens - reference_sum) / len(held_out)
    return {UNSEEN: nats, "eval/rewards": reward}


def _summary(pool: ComparisonPool, metrics: dict[str, float]) -> str:
    """What a person wants to know of a round."""
    answers = [sample for group in pool.rounds[-1] for sample in group]
    ended = sum(sample.completion.finish_reason == "stop" for sample in answers)
    margin = metrics.get("rewards/margins", 0.0)
    return (
        f"{len(answers)} answers, {ended} of them ended by themselves; "
        f"loss {metrics['loss']:.2f}, margin {margin:.2f}"
    )
