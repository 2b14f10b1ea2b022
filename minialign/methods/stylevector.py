"""StyleVector: steering without training (Zhang et al. 2025, arXiv 2503.05213).

What tells the person's texts from the base model's answers to the same prompts is a direction in
the residual stream behind a middle layer. It is added there while the model writes:

    s = mean over prompts (mean h of the person's text - mean h of the base model's answers)
    h <- h + strength s

The vector is kept as an adapter of rank one, s a^T on the layer's last matrix, so that whatever
opens an adapter opens it. `a` is the direction along which that matrix's inputs are nearly 1, by
ridge regression over all tokens read; `constant/spread` says how nearly on unseen texts.

Where this differs from the paper: the vector is added at the prompt's tokens as well, a text
stands for the mean over its tokens, and no knob is tuned for the person.
"""

from __future__ import annotations

from collections.abc import Sequence as Sequence
from typing import cast

import torch
from torch import Tensor

from minialign.data.records import Example
from minialign.errors import InputError
from minialign.methods.cards import UNSEEN
from minialign.methods.lessons import Work
from minialign.methods.sft import Demonstrated
from minialign.methods.steering_knobs import StyleVectorConfig
from minialign.model.transformer import CausalLM, DecoderLayer
from minialign.policy.measure import nats_per_token
from minialign.policy.packing import Packed, micro_batches
from minialign.policy.peft import PEFT_PREFIX, adapter_state, load_adapter_state
from minialign.policy.reference import reference_policy
from minialign.policy.sample import sample
from minialign.policy.score import predictors
from minialign.training.run import Run
from minialign.training.state import Parts

ADAPTER = "stylevector"
# Of the regression, as a share of the inputs' mean square; and rows that it is fitted on at most.
RIDGE, ROWS = 0.01, 2048


def train(model: CausalLM, lessons: Demonstrated, knobs: StyleVectorConfig, run: Run) -> None:
    """Fills the model's active adapter, a fresh one, in place: one step without a gradient."""
    parts = Parts(model)
    first = run.restore(ADAPTER, parts) or 0
    model.eval()
    for step in run.steps(ADAPTER, first, 1, parts):
        answers = _answers(model, lessons.train, knobs, run)
        with run.phase("train"):
            spread = steer(model, lessons, answers, knobs, run.micro_batch_tokens)
        loss, unseen = (
            nats_per_token(model, texts, run.micro_batch_tokens)
            for texts in (lessons.train, lessons.held_out)
        )
        tokens = sum(map(len, [*lessons.train, *answers]))
        found = {"loss": loss, UNSEEN: unseen, "constant/spread": spread, "tokens": tokens}
        run.log(ADAPTER, step, found)
        run.say("StyleVector", f"{len(answers)} answers contrasted", unseen)


def _answers(
    model: CausalLM, demonstrations: list[Example], knobs: StyleVectorConfig, run: Run
) -> list[Example]:
    """The base model's, to the demonstrations' prompts."""
    prompts = list(dict.fromkeys(one.prompt_ids for one in demonstrations))
    count = knobs.samples_per_prompt
    on_token = run.sampling_progress(1, len(prompts) * count)
    with run.phase("sample"), reference_policy(model, None):
        seed = run.derive_seed(ADAPTER, 0)
        groups = sample(model, prompts, count, knobs.sampling, seed=seed, on_token=on_token)
    return [Example(p, c.ids) for p, group in zip(prompts, groups, strict=True) for c in group]


def steer(
    model: CausalLM,
    lessons: Demonstrated,
    answers: list[Example],
    knobs: StyleVectorConfig,
    max_tokens: int,
) -> float:
    """Writes the vector into the adapter; returns the spread of what is taken to be 1."""
    layer = round(knobs.depth * (model.config.num_hidden_layers - 1))
    block = block_of(model, layer)
    if block.norms.after_mlp is not None:
        raise InputError("the model normalises what its layers add: no vector can be added there")
    with reference_policy(model, None):
        states, inputs = observed(model, layer, [*lessons.train, *answers], max_tokens)
        _, unseen = observed(model, layer, lessons.held_out or lessons.train, max_tokens)
    own: dict[tuple[int, ...], list[Tensor]] = {}
    base: dict[tuple[int, ...], list[Tensor]] = {}
    for texts, kept in ((lessons.train, own), (answers, base)):
        for text in texts:
            kept.setdefault(text.prompt_ids, []).append(states[text])
    vector = style_vector(
        [(torch.stack(texts), torch.stack(base[prompt])) for prompt, texts in own.items()]
    )
    direction = constant_direction(inputs[:: -(-len(inputs) // ROWS)])
    path = f"{PEFT_PREFIX}model.layers.{layer}.mlp.down_proj.lora"
    state = adapter_state(model, ADAPTER)
    state[f"{path}_A.weight"] = direction[None].float()
    state[f"{path}_B.weight"] = (knobs.strength / block.multiplier * vector)[:, None].float()
    load_adapter_state(model, ADAPTER, state, "the style vector")
    return float((unseen @ direction).std())


def observed(
    model: CausalLM, layer: int, texts: Sequence[Example], max_tokens: int
) -> tuple[dict[Example, Tensor], Tensor]:
    """Each text's mean state behind a layer, (D,), and what its last matrix reads, (N, I).

    In float64: the first of the tokens that predict the text, the second of all tokens.
    """
    block, kept = block_of(model, layer), dict[str, Tensor]()
    states: dict[Example, Tensor] = {}
    inputs: list[Tensor] = []
    hooks = [
        block.register_forward_hook(lambda _, given, out: kept.update(state=out)),
        block.mlp.down_proj.register_forward_pre_hook(lambda _, given: kept.update(read=given[0])),
    ]
    try:
        for part in micro_batches(list(dict.fromkeys(texts)), lambda text: (text,), max_tokens):
            packed = Packed.of(part)
            predictors(model, packed)
            rows = kept["state"].double()[packed.predictors].split(packed.lengths)
            states |= {text: rows[packed.index[n]].mean(0) for n, text in enumerate(part)}
            inputs.append(kept["read"].double())
    finally:
        for hook in hooks:
            hook.remove()
    return states, torch.cat(inputs)


def block_of(model: CausalLM, layer: int) -> DecoderLayer:
    return cast(DecoderLayer, model.model.layers[layer])


def style_vector(contrasts: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """(D,): of each prompt, the person's mean state less the base model's; the mean over prompts.

    A prompt has the states of so many texts, (texts, D), of either.
    """
    return torch.stack([own.mean(0) - base.mean(0) for own, base in contrasts]).mean(0)


def constant_direction(inputs: Tensor, ridge: float = RIDGE) -> Tensor:
    """(N, I) -> (I,): the a for which inputs @ a is nearly 1 everywhere, and 1 in the mean."""
    gram = inputs @ inputs.T
    gram.diagonal().add_(ridge * gram.diagonal().mean())
    found = inputs.T @ torch.linalg.solve(gram, inputs.new_ones(len(inputs)))
    return found / (inputs @ found).mean()


def work(lessons: Demonstrated, knobs: StyleVectorConfig, tokens: int) -> Work:
    """`tokens` are those that a micro-batch may hold."""
    new, prompts = knobs.sampling.max_new_tokens, {one.prompt_ids for one in lessons.train}
    samples = len(prompts) * knobs.samples_per_prompt
    longest = max(map(len, prompts)) + new
    row = f"{samples} answers of at most {new} tokens, contrasted once; nothing is trained"
    read = sum(map(len, lessons.train)) + samples * longest
    return Work(
        read=0,
        referred=3 * read,
        largest=max(tokens, longest),
        probe=lessons.train,
        written=samples * new,
        samples=samples,
        longest=longest,
        sampling=knobs.sampling,
        stages=[("StyleVector", row)],
        tokens=f"at most {samples * new:,} tokens written and read",
    )
