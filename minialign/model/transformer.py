"""A Mistral / Llama transformer by hand: RMSNorm, rotary positions, grouped-query attention,
SwiGLU.

Modules carry the names of the Hugging Face checkpoints (`model.layers.0.self_attn.q_proj.weight`),
so that loading is a plain `load_state_dict`. The forward pass takes a flat list of tokens and an
attention layout (attention.py) and returns hidden states; who needs log-probabilities applies the
head to the few positions that matter (fused.py). This file knows nothing of LoRA, optimizers,
loading or generation.

Shape letters: N tokens, B batch, T tokens a row, D hidden, H query heads, K key-value heads, Hd
head size, V vocabulary.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from minialign.model.activations import (
    plain_rms_norm,
    plain_rotate,
    plain_swiglu,
    rms_norm,
    rotate,
    swiglu,
)
from minialign.model.attention import PackedAttention
from minialign.model.config import ModelConfig
from minialign.model.matmul import Linear, SharedInput
from minialign.model.rope import rope_frequencies
from minialign.model.segments import Attend, Segment

Checkpointing = Literal["none", "cheap", "full"]


class RMSNorm(nn.Module):
    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps
        self.lean = True

    def forward(self, x: Tensor) -> Tensor:  # (N, D) -> (N, D)
        norm = rms_norm if self.lean else plain_rms_norm
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
        self.lean = True

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, attend: Attend) -> Tensor:
        heads = (len(x), -1, self.head_dim)
        turn = rotate if self.lean else plain_rotate
        q, k, v = (part.view(heads) for part in self.project(x))  # (N, H or K, Hd)
        q, k = turn(q, cos, sin), turn(k, cos, sin)
        return self.o_proj(attend(self.layer, q, k, v).reshape(len(x), -1))


class MLP(SharedInput):
    """SwiGLU: down(silu(gate(x)) * up(x)) (arXiv 2002.05202)."""

    shared = ("gate_proj", "up_proj")

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_proj = Linear(config.hidden_size, config.intermediate_size)
        self.up_proj = Linear(config.hidden_size, config.intermediate_size)
        self.down_proj = Linear(config.intermediate_size, config.hidden_size)
        self.lean = True

    def forward(self, x: Tensor) -> Tensor:
        gated = swiglu if self.lean else plain_swiglu
        return self.down_proj(gated(*self.project(x)))


class DecoderLayer(nn.Module):
    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.self_attn = Attention(config, layer)
        self.mlp = MLP(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, attend: Attend) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, attend)
        return x + self.mlp(self.post_attention_layernorm(x))


class Transformer(nn.Module):
    """Embedding, layers, final norm: token ids (N,) at positions (N,) -> hidden states (N, D)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(
            DecoderLayer(config, i) for i in range(config.num_hidden_layers)
        )
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.recompute_layers = False

    def forward(self, ids: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        x = self.embed_tokens(ids).to(self.norm.weight.dtype)
        angles = positions[:, None].float() * rope_frequencies(self.config, x.device)
        cos = angles.cos().repeat(1, 2)[:, None].to(x.dtype)  # (N, 1, Hd)
        sin = angles.sin().repeat(1, 2)[:, None].to(x.dtype)
        for layer in self.layers:
            if self.recompute_layers and torch.is_grad_enabled():
                x = checkpoint(layer, x, cos, sin, attend, use_reentrant=False)
            else:
                x = layer(x, cos, sin, attend)
        return self.norm(x)


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

        none: all that autograd would; cheap: what norms, rotations and SwiGLU made is made again
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
        """The type of the matrices."""
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
        attend = PackedAttention(segments, self.config.sliding_window, ids.device)
        positions = torch.arange(length, device=ids.device).repeat(rows)
        return self.lm_head(self(ids.flatten(), positions, attend)).float().view(rows, length, -1)
