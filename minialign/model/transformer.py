"""A transformer by hand: RMSNorm, rotary positions, grouped-query attention, a gated MLP.

It is Llama's, with the switches by which its relatives differ (families.py).

Modules carry the names of the Hugging Face checkpoints (`model.layers.0.self_attn.q_proj.weight`):
a tensor's name is its place. The forward pass takes a flat list of tokens and an
attention layout (attention.py) and returns hidden states; who needs log-probabilities applies the
head to the few positions that matter (fused.py). This file knows nothing of LoRA, optimizers,
loading or generation.

Shape letters: N tokens, B batch, T tokens a row, D hidden, H query heads, K key-value heads, Hd
head size, V vocabulary.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from minialign.model.activations import (
    gated,
    plain_gated,
    plain_rms_norm,
    plain_rotate,
    rms_norm,
    rotate,
)
from minialign.model.attention import PackedAttention
from minialign.model.config import ModelConfig
from minialign.model.matmul import Embedding, Linear, SharedInput
from minialign.model.rope import Turn, turn_of
from minialign.model.segments import Attend, Segment

Checkpointing = Literal["none", "cheap", "full"]


class RMSNorm(nn.Module):
    """x / rms(x), times the weight, or times 1 + weight where norms are centred."""

    def __init__(self, size: int, config: ModelConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = config.rms_norm_eps
        self.centred = config.family.centred_norms
        self.lean = True

    def forward(self, x: Tensor) -> Tensor:  # (.., D) -> (.., D)
        norm = rms_norm if self.lean else plain_rms_norm
        if self.centred:  # in float32: a half type would round 1 + weight
            return norm(x.float(), 1 + self.weight.float(), self.eps).to(x.dtype)
        return norm(x, self.weight, self.eps)


class Attention(SharedInput):
    """Grouped-query attention: H query heads share K key-value heads.

    Who sees whom is the layout's business.
    """

    shared = ("q_proj", "k_proj", "v_proj")

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.head_dim = config.head_dim
        queries, keys = (
            config.num_attention_heads * config.head_dim,
            config.num_key_value_heads * config.head_dim,
        )
        self.q_proj = Linear(config.hidden_size, queries)
        self.k_proj = Linear(config.hidden_size, keys)
        self.v_proj = Linear(config.hidden_size, keys)
        self.o_proj = Linear(queries, config.hidden_size)
        self.qkv_bias = config.family.qkv_bias
        if self.qkv_bias:
            for projection in self.readers():
                projection.bias = nn.Parameter(torch.zeros(projection.out_features))
        self.qk_norm = config.family.qk_norm
        if self.qk_norm != "none":
            whole = self.qk_norm == "whole"
            self.q_norm = RMSNorm(queries if whole else config.head_dim, config)
            self.k_norm = RMSNorm(keys if whole else config.head_dim, config)
        # the layouts divide scores by sqrt(head_dim)
        scale = config.attention_multiplier
        self.query_scale = 1.0 if scale is None else scale * math.sqrt(config.head_dim)
        self.lean = True

    def forward(self, x: Tensor, turn: Turn | None, attend: Attend) -> Tensor:
        q, k, v = self.project(x)
        if self.qkv_bias:
            q, k, v = q + self.q_proj.bias, k + self.k_proj.bias, v + self.v_proj.bias
        if self.qk_norm == "whole":
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = (part.view(len(x), -1, self.head_dim) for part in (q, k, v))  # (N, H or K, Hd)
        if self.qk_norm == "head":
            q, k = self.q_norm(q), self.k_norm(k)
        if turn is not None:
            q, k = self.rotated(q, turn), self.rotated(k, turn)
            q = q if turn.growth is None else q * turn.growth
        if self.query_scale != 1:
            q = q * self.query_scale
        return self.o_proj(attend(self.layer, q, k, v).reshape(len(x), -1))

    def rotated(self, x: Tensor, turn: Turn) -> Tensor:
        """Turns the first channels of each head, usually all."""
        rotate_all = rotate if self.lean else plain_rotate
        size = turn.cos.shape[-1]
        if size == self.head_dim:
            return rotate_all(x, turn.cos, turn.sin)
        return torch.cat((rotate_all(x[..., :size], turn.cos, turn.sin), x[..., size:]), dim=-1)


class MLP(SharedInput):
    """down(f(gate(x)) * up(x)), f the activation: SwiGLU and its like (arXiv 2002.05202)."""

    shared = ("gate_proj", "up_proj")

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_proj = Linear(config.hidden_size, config.intermediate_size)
        self.up_proj = Linear(config.hidden_size, config.intermediate_size)
        self.down_proj = Linear(config.intermediate_size, config.hidden_size)
        self.activation = config.family.activation
        self.lean = True

    def forward(self, x: Tensor) -> Tensor:
        product = gated if self.lean else plain_gated
        gate, up = self.project(x)
        return self.down_proj(product(gate, up, self.activation))


class DecoderLayer(nn.Module):
    """Attention, then the MLP; each adds to x, with a norm before it, behind it, or both."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.self_attn = Attention(config, layer)
        self.mlp = MLP(config)
        self.multiplier = config.residual_multiplier
        self.norms = config.family.norms
        for name in self.norms:
            if name is not None:
                self.add_module(name, RMSNorm(config.hidden_size, config))

    def forward(self, x: Tensor, turn: Turn | None, attend: Attend) -> Tensor:
        norms = self.norms
        added = self.self_attn(self.normed(norms.before_attention, x), turn, attend)
        x = x + self.scaled(self.normed(norms.after_attention, added))
        added = self.mlp(self.normed(norms.before_mlp, x))
        return x + self.scaled(self.normed(norms.after_mlp, added))

    def normed(self, name: str | None, x: Tensor) -> Tensor:
        return x if name is None else getattr(self, name)(x)

    def scaled(self, added: Tensor) -> Tensor:
        return added if self.multiplier == 1 else added * self.multiplier


class Transformer(nn.Module):
    """Embedding, layers, final norm: token ids (N,) at positions (N,) -> hidden states (N, D).

    Where logits are divided by a number, the hidden states are: whoever applies the head need not
    know.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(
            DecoderLayer(config, i) for i in range(config.num_hidden_layers)
        )
        self.norm = RMSNorm(config.hidden_size, config)
        # Few ropes serve many layers: each layer knows the number of its own.
        self.ropes = list(dict.fromkeys(spec.rope for spec in config.layers))
        self.rope_numbers = [self.ropes.index(spec.rope) for spec in config.layers]
        self.recompute_layers = False

    def forward(self, ids: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        config, x = self.config, self.embed_tokens(ids)
        if config.embedding_multiplier != 1:  # rounded to the model's type, as it was trained
            x = x * torch.tensor(config.embedding_multiplier, dtype=x.dtype)
        x = x.to(self.norm.weight.dtype)
        turns = [turn_of(rope, config.head_dim, positions, x.dtype) for rope in self.ropes]
        for layer, number in zip(self.layers, self.rope_numbers, strict=True):
            turn = turns[number]
            if self.recompute_layers and torch.is_grad_enabled():
                x = checkpoint(layer, x, turn, attend, use_reentrant=False)
            else:
                x = layer(x, turn, attend)
        x = self.norm(x)
        return x if config.logits_divisor == 1 else x / config.logits_divisor


class CausalLM(nn.Module):
    """The transformer and its head.

    `name`, `revision` and `stop_ids` travel along, for adapters and for the sampler; and
    `ordinary_ids`, a text by which int8 products are scaled.
    """

    def __init__(self, config: ModelConfig, name: str = "") -> None:
        super().__init__()
        self.config = config
        self.name = name
        self.revision: str | None = None
        self.stop_ids: tuple[int, ...] = ()
        self.ordinary_ids: tuple[int, ...] = ()
        self.model = Transformer(config)
        self.lm_head = Linear(config.hidden_size, config.vocab_size)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    def set_activation_checkpointing(self, mode: Checkpointing) -> None:
        """What the forward pass keeps for the backward pass. No mode changes the gradient.

        none: all that autograd would; cheap: what norms, rotations and gates made is made again
        from their inputs; full: only each layer's input is kept, and a layer's forward pass runs
        again, half more work where weights are frozen.
        """
        for module in self.modules():
            if isinstance(module, RMSNorm | Attention | MLP):
                module.lean = mode != "none"
        self.model.recompute_layers = mode == "full"

    @property
    def device(self) -> torch.device:
        return self.model.embed_tokens.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The type in which the matrices multiply."""
        return self.model.embed_tokens.weight.dtype

    @property
    def stream_dtype(self) -> torch.dtype:
        """The type of what flows between the products: float32 on a processor."""
        return self.model.norm.weight.dtype

    def forward(self, ids: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        """Hidden states (N, D) of a flat list of tokens; whoever needs it applies the head."""
        return self.model(ids, positions, attend)

    def logits(self, ids: Tensor) -> Tensor:
        """The plain forward pass, for readers and parity tests: (B, T) -> (B, T, V), float32."""
        rows, length = ids.shape
        segments = [Segment(row * length, (row + 1) * length) for row in range(rows)]
        attend = PackedAttention(segments, self.config.windows, ids.device)
        positions = torch.arange(length, device=ids.device).repeat(rows)
        return self.lm_head(self(ids.flatten(), positions, attend)).float().view(rows, length, -1)
