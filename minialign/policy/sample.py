"""The verb that writes: completions as token ids, with log-probabilities and why they ended.

Each distinct prompt is read once, and its keys and values are shared by all its samples. These wait
in one queue for `max_rows` rows: a row that ends leaves at once and the next sample takes its
place. Every sample has a random stream of its own, keyed by (seed, prompt, sample), so in float32
the result does not depend on how rows were batched.

Shape letters: B live rows, V vocabulary.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from minialign.data.records import Messages
from minialign.errors import InputError
from minialign.model.attention import PackedAttention
from minialign.model.cache import KVCache, places_of
from minialign.model.matmul import Ranges, input_ranges, packed_weights
from minialign.model.segments import Segment
from minialign.model.transformer import CausalLM
from minialign.policy.knobs import SamplingConfig
from minialign.policy.merge import merged_adapter
from minialign.weights.devices import pick_precision

if TYPE_CHECKING:
    from minialign.weights.tokenizer import Tokenizer
from minialign.policy.draw import draw_tokens

# Tokens that a GPU writes before the host looks at them: looking waits for it.
AHEAD = 16
FinishReason = Literal["stop", "length"]
OnToken = Callable[[int, int, int], None]  # (prompt index, sample index, token id)


@dataclass(frozen=True)
class Completion:
    """A sampled text. `ids` are the truth and end in the stop token if `finish_reason` is "stop".

    `logprob` is the sum of log pi(token) under the policy as it is, whatever temperature or filter
    drew the tokens.
    """

    text: str
    ids: tuple[int, ...]
    logprob: float
    finish_reason: FinishReason


OnAnswer = Callable[[int, int, Completion], None]  # (prompt index, sample index, what was written)


@dataclass
class _Row:
    """A sample that is being written."""

    prompt: int
    sample: int
    limit: int
    uniforms: np.ndarray
    ids: list[int] = field(default_factory=list)
    logprob: float = 0.0
    finish_reason: FinishReason = "length"

    def take(self, token: int, logprob: float, stop_ids: Sequence[int]) -> None:
        self.ids.append(token)
        self.logprob += logprob
        if token in stop_ids:
            self.finish_reason = "stop"

    @property
    def left(self) -> int:
        """How many tokens may still follow."""
        return 0 if self.finish_reason == "stop" else self.limit - len(self.ids)


@torch.no_grad()
def sample(
    model: CausalLM,
    prompts: Sequence[Sequence[int]],
    n: int,
    config: SamplingConfig,
    *,
    seed: int,
    streams: Sequence[int] | None = None,
    on_token: OnToken | None = None,
    on_answer: OnAnswer | None = None,
) -> list[list[Completion]]:
    """n completions of each prompt (token ids), in order; their `text` is left empty.

    A prompt draws from a random stream of its own: the one with its place's number, or with the
    number in `streams` (in [0, 2^32)), by which it writes the same whatever else is asked.

    In float32 the same seed gives the same completions whatever `config.max_rows` is, up to
    rounding where a random number falls between two tokens. (In int8 the products add nothing to
    that.) The active adapter is merged into the
    weights meanwhile, where that loses nothing, and they come back bit for bit.

    Raises InputError for an empty prompt or one that leaves no room in the model's context.
    """
    limits = [_room(model, prompt, config.max_new_tokens) for prompt in prompts]
    if not prompts or n == 0:
        return [[] for _ in prompts]
    precision = pick_precision(config.rollout_dtype, model.device, model.config.hidden_size)
    training = model.training
    model.eval()
    try:
        ranges = _ordinary_ranges(model) if precision == "int8" else None
        with merged_adapter(model), packed_weights(model, precision, ranges):
            keys = range(len(prompts)) if streams is None else streams
            rows = _write(model, prompts, n, config, limits, seed, keys, on_token, on_answer)
    finally:
        model.train(training)
    done = {(row.prompt, row.sample): row for row in rows}
    return [[_completion(done[p, s]) for s in range(n)] for p in range(len(prompts))]


def _ordinary_ranges(model: CausalLM) -> Ranges:
    """What the linear layers read of the model's ordinary text; empty if it has none."""
    ids = torch.tensor(model.ordinary_ids[: model.config.max_position_embeddings])
    with input_ranges(model) as ranges:
        if len(ids):
            model.logits(ids[None])
    return ranges


def _completion(row: _Row) -> Completion:
    return Completion("", tuple(row.ids), row.logprob, row.finish_reason)


def _room(model: CausalLM, prompt: Sequence[int], max_new_tokens: int) -> int:
    if not prompt:
        raise InputError("cannot sample from an empty prompt: it needs at least one token")
    room = model.config.max_position_embeddings - len(prompt)
    if room < 1:
        context = model.config.max_position_embeddings
        raise InputError(
            f"the prompt has {len(prompt)} tokens, the model's context holds {context}: shorten it"
        )
    return min(max_new_tokens, room)


def _write(
    model: CausalLM,
    prompts: Sequence[Sequence[int]],
    n: int,
    config: SamplingConfig,
    limits: list[int],
    seed: int,
    streams: Sequence[int],
    on_token: OnToken | None,
    on_answer: OnAnswer | None,
) -> list[_Row]:
    queue = deque(
        _Row(p, s, limits[p], _uniforms(seed, streams[p], s, limits[p]))
        for p in range(len(prompts))
        for s in range(n)
    )
    waiting = Counter(tuple(prompts[row.prompt]) for row in queue)
    read: dict[tuple[int, ...], _Prefix] = {}
    live: list[_Row] = []
    finished: list[_Row] = []
    longest = max(len(prompt) + limit for prompt, limit in zip(prompts, limits, strict=True))
    cache = _new_cache(model, longest, cache_rows(model, longest, len(queue), config))
    logits: Tensor | None = None  # (B, V): what each live row will be drawn from
    while queue or live:
        joined = _join(model, prompts, queue, live, cache, read, waiting)
        if joined is not None:
            logits = joined if logits is None else torch.cat((logits, joined))
        assert logits is not None
        drawn = _draw_ahead(model, logits, live, cache, config)
        for row in reversed(range(len(live))):  # a removed row is replaced by the last one
            own = live[row]
            for token, logprob in drawn[row]:
                # What a row wrote behind its end is nobody's.
                if own.left:
                    own.take(token, logprob, model.stop_ids)
                    if on_token:
                        on_token(own.prompt, own.sample, token)
            if not own.left:
                finished.append(own)
                if on_answer:
                    on_answer(own.prompt, own.sample, _completion(own))
                cache.remove(row)
                live[row] = live[-1]
                live.pop()
        last = torch.tensor([row.ids[-1] for row in live], device=model.device)
        logits = _next(model, cache, last) if live else None
    return finished


def _next(model: CausalLM, cache: KVCache, ids: Tensor) -> Tensor:
    """Every live row reads its token, (B,); the logits of what follows, (B, V)."""
    positions, attend = cache.step()
    return _logits(model, model(ids, positions, attend))


def _uniforms(seed: int, stream: int, sample: int, count: int) -> np.ndarray:
    """One number in [0, 1) per token, from a counter-based stream of this sample's own."""
    key = np.array([seed, (stream << 32) | sample], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key)).random(count)


def cache_rows(model: CausalLM, longest: int, samples: int, config: SamplingConfig) -> int:
    """How many of `samples` completions are written at a time, in sequences of `longest` tokens."""
    fit = config.cache_gb * 1e9 / cache_bytes(model, longest)
    return max(1, int(min(config.max_rows, samples, fit)))


def cache_bytes(model: CausalLM, longest: int) -> int:
    """Keys and values of one row."""
    config = model.config
    places = places_of(config.windows, longest)
    numbers = 2 * config.num_hidden_layers * places * config.num_key_value_heads * config.head_dim
    return numbers * model.stream_dtype.itemsize


def _new_cache(model: CausalLM, longest: int, rows: int) -> KVCache:
    config = model.config
    return KVCache(
        config.windows,
        rows,
        longest,
        config.num_key_value_heads,
        config.head_dim,
        dtype=model.stream_dtype,
        device=model.device,
    )


def _join(
    model: CausalLM,
    prompts: Sequence[Sequence[int]],
    queue: deque[_Row],
    live: list[_Row],
    cache: KVCache,
    read: dict[tuple[int, ...], _Prefix],
    waiting: Counter[tuple[int, ...]],
) -> Tensor | None:
    """Fills free rows from the queue. What was read of a prompt is kept while samples of it wait.

    Returns the logits (new rows, V) to draw their first tokens from.
    """
    joining = [queue.popleft() for _ in range(min(len(queue), cache.capacity - len(cache)))]
    if not joining:
        return None
    groups: dict[tuple[int, ...], list[_Row]] = {}
    for row in joining:
        groups.setdefault(tuple(prompts[row.prompt]), []).append(row)
    live += [row for group in groups.values() for row in group]
    unread = [prompt for prompt in groups if prompt not in read]
    if unread:
        read |= _read(model, unread)
    for prompt, group in groups.items():
        cache.add(read[prompt].recorded, len(prompt), len(group))
    logits = torch.stack([read[prompt].logits for prompt in groups])
    repeats = torch.tensor([len(group) for group in groups.values()], device=model.device)
    for prompt, group in groups.items():
        waiting[prompt] -= len(group)
        if not waiting[prompt]:
            del read[prompt]
    return logits.repeat_interleave(repeats, dim=0, output_size=len(joining))


@dataclass(frozen=True)
class _Prefix:
    """A prompt that was read: keys and values by layer, and the logits of what follows, (V,)."""

    recorded: list[tuple[Tensor, Tensor]]
    logits: Tensor


def _read(model: CausalLM, prompts: Sequence[tuple[int, ...]]) -> dict[tuple[int, ...], _Prefix]:
    """One forward pass over distinct prompts, laid end to end."""
    segments: list[Segment] = []
    ids: list[int] = []
    positions: list[int] = []
    for prompt in prompts:
        segments.append(Segment(len(ids), len(ids) + len(prompt)))
        ids += prompt
        positions += segments[-1].positions
    device = model.device
    attend = PackedAttention(segments, model.config.windows, device, record=True)
    hidden = model(torch.tensor(ids, device=device), torch.tensor(positions, device=device), attend)
    last = torch.tensor([segment.stop - 1 for segment in segments], device=device)
    logits = _logits(model, hidden[last])
    return {
        prompt: _Prefix(
            [(k[s.start : s.stop], v[s.start : s.stop]) for k, v in attend.recorded], row
        )
        for prompt, s, row in zip(prompts, segments, logits, strict=True)
    }


def _logits(model: CausalLM, hidden: Tensor) -> Tensor:
    return model.lm_head.wide(hidden)


def _draw_ahead(
    model: CausalLM, logits: Tensor, live: list[_Row], cache: KVCache, config: SamplingConfig
) -> list[list[tuple[int, float]]]:
    """Draws the next token of each live row, on a GPU the next few; each with its log-probability.

    No row comes to more tokens than it may have, but one may go on behind its end.
    """
    steps = min(_ahead(model.device), *(row.left for row in live))
    numbers = [row.uniforms[len(row.ids) :][:steps].tolist() for row in live]
    uniforms = torch.tensor(numbers, dtype=logits.dtype, device=logits.device)
    drawn: list[tuple[Tensor, Tensor]] = []
    for step in range(steps):
        if drawn:
            logits = _next(model, cache, drawn[-1][0])
        drawn.append(draw_tokens(logits, uniforms[:, step], config))
    ids, logprobs = (torch.stack(numbers, dim=1).tolist() for numbers in zip(*drawn, strict=True))
    return [list(zip(*row, strict=True)) for row in zip(ids, logprobs, strict=True)]


def _ahead(device: torch.device) -> int:
    return AHEAD if device.type == "cuda" else 1


def generate(
    model: CausalLM,
    tokenizer: Tokenizer,
    prompts: str | Sequence[str | Messages],
    *,
    n: int = 1,
    max_new_tokens: int = 200,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    seed: int = 0,
    on_token: OnToken | None = None,
    on_answer: OnAnswer | None = None,
) -> list[list[Completion]]:
    """n completions, as text, of each prompt (a text, or a chat's messages): a list per prompt.

    A text alone is one prompt. `on_answer` is called with each completion as soon as it is written.
    """
    prompts = [prompts] if isinstance(prompts, str) else prompts
    config = SamplingConfig(max_new_tokens, temperature, top_p, top_k)
    ids = [tokenizer.encode_prompt(prompt) for prompt in prompts]

    def told(prompt: int, number: int, completion: Completion) -> None:
        if on_answer:
            on_answer(prompt, number, with_text(completion, tokenizer))

    sampled = sample(model, ids, n, config, seed=seed, on_token=on_token, on_answer=told)
    return [[with_text(completion, tokenizer) for completion in group] for group in sampled]


def with_text(completion: Completion, tokenizer: Tokenizer) -> Completion:
    text = tokenizer.decode(completion.ids)
    return Completion(text, completion.ids, completion.logprob, completion.finish_reason)
