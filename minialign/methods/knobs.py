"""The methods' knobs: dataclass fields with their defaults, their help texts and their sources.

The command line is derived from these fields, a run writes all of them to its config.json, and a
test shows that each one changes something. The defaults are the papers'; where DITTO's official
code (SALT-NLP/demonstrated-feedback) differs from its paper (arXiv 2406.00888, Table 5), the field
says so. `RECIPES` names whole settings.

This module imports nothing heavy: `--help` reads it.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Literal, Protocol

from minialign.data.knobs import knob, knobs, require
from minialign.policy.knobs import EVERY_LINEAR, LoRAConfig, SamplingConfig


class MethodKnobs(Protocol):
    """What the knobs of every method have: the adapters, a limit of length, and a last step."""

    @property
    def lora(self) -> LoRAConfig: ...
    @property
    def max_length(self) -> int: ...
    @property
    def unread(self) -> dict[str, str]:
        """Flags of knobs that the others' values leave without effect, each with the reason."""
        ...

    def fitted(self, longest: int) -> MethodKnobs:
        """The knobs with what depends on the data filled in; `longest` is in tokens."""
        ...


@dataclass(frozen=True)
class SFTConfig:
    """The supervised warm start, stopped early: DPO needs texts that are not known by heart yet."""

    max_steps: int = knob(30, "SFT steps at most (DITTO code 30)")
    batch_size: int = knob(4, "demonstrations a step (DITTO 4)")
    learning_rate: float = knob(3e-5, "peak learning rate, cosine decay (DITTO 3e-5)")
    warmup_ratio: float = knob(0.1, "share of the steps that warm up (DITTO paper .1, its code .2)")
    stop_loss: float = knob(
        1.0, "stop once a step's loss, in nats per token, falls below (DITTO 1.0); 0: never"
    )
    stop_ratio: float = knob(
        1.0,
        "and below this share of the first step's loss, since some voices begin below stop_loss; "
        "1: stop_loss alone (not in the paper)",
    )
    train_on_prompt: bool = knob(False, "also learn to write the prompts (DITTO's code does)")

    def __post_init__(self) -> None:
        require(self.max_steps >= 0, f"max_steps must not be negative, not {self.max_steps}")
        require(self.batch_size >= 1, f"batch_size must be at least 1, not {self.batch_size}")
        require(self.learning_rate > 0, f"learning_rate must be positive, not {self.learning_rate}")
        require(
            0 <= self.warmup_ratio <= 1, f"warmup_ratio must lie in [0, 1], not {self.warmup_ratio}"
        )
        require(0 <= self.stop_ratio <= 1, f"stop_ratio must lie in [0, 1], not {self.stop_ratio}")


@dataclass(frozen=True)
class DittoConfig:
    """DITTO (Shaikh et al. 2024, arXiv 2406.00888, Algorithm 1 and Table 5).

    `--method sft` uses the part that concerns it.
    """

    lora: LoRAConfig = knobs(LoRAConfig(), "lora_", subject="the adapter")
    sft: SFTConfig = knobs(SFTConfig(), "sft_", subject="the warm start (SFT)")
    sampling: SamplingConfig = knobs(SamplingConfig(), "", subject="how answers are drawn")
    max_steps: int = knob(40, "DPO steps (paper 40)", subject="how it learns")
    resample_every: int = knob(
        10, "K: steps between two rounds of sampling (paper 10)", subject="rounds and pairs"
    )
    samples_per_prompt: int = knob(
        10, "M: completions sampled per demonstration and round (paper 10)"
    )
    pairs_per_step: int = knob(
        24, "comparisons a step, fewer while there is nothing to replay (paper 24)"
    )
    expert_fraction: float = knob(0.7, "share of pairs demonstration > newest samples (paper .7)")
    replay_fraction: float = knob(0.2, "share of pairs demonstration > older samples (paper .2)")
    inter_model_fraction: float = knob(
        0.1, "share of pairs newer > older samples (paper .1; its code says noisy)"
    )
    beta: float = knob(
        0.05,
        "DPO's beta: how far the policy may leave the SFT reference (paper .05)",
        subject="how it learns",
    )
    learning_rate: float = knob(1e-6, "DPO learning rate, constant after its warm-up (paper 1e-6)")
    warmup_ratio: float = knob(0.25, "share of the DPO steps that warm up (paper .25)")
    update_reference: bool = knob(
        False, "let the reference follow the policy each round (ablation: costs DITTO 24 points)"
    )
    label_smoothing: float = knob(0.0, "conservative DPO: share of comparisons taken to be wrong")
    nll_weight: float = knob(
        0.0, "adds this times the demonstrations' loss per token, against DPO collapse"
    )
    anchors: float = knob(
        0.0,
        "adds this times the divergence from the base model on general prompts, in both stages, "
        "against forgetting; 0: none (not in the paper)",
    )
    max_grad_norm: float = knob(1.0, "gradients are scaled down to this norm, in both stages")
    weight_decay: float = knob(0.0, "AdamW's weight decay, in both stages")
    max_length: int = knob(
        2048,
        "tokens of prompt and completion at most; longer demonstrations are cut (DITTO code 2048)",
    )

    def __post_init__(self) -> None:
        require(self.max_steps >= 0, f"max_steps must not be negative, not {self.max_steps}")
        for name in ("resample_every", "samples_per_prompt", "pairs_per_step"):
            require(
                getattr(self, name) >= 1, f"{name} must be at least 1, not {getattr(self, name)}"
            )
        for name, share in self.mix.items():
            require(0 <= share <= 1, f"{name}_fraction must lie in [0, 1], not {share}")
        total = sum(self.mix.values())
        require(abs(total - 1) < 1e-6, f"the three fractions must add up to 1, not {total:g}")
        require(self.beta > 0, f"beta must be positive, not {self.beta}")
        require(self.learning_rate > 0, f"learning_rate must be positive, not {self.learning_rate}")
        require(
            0 <= self.warmup_ratio <= 1, f"warmup_ratio must lie in [0, 1], not {self.warmup_ratio}"
        )
        for name in ("nll_weight", "anchors", "weight_decay"):
            require(
                getattr(self, name) >= 0, f"{name} must not be negative, not {getattr(self, name)}"
            )
        require(
            0 <= self.label_smoothing < 0.5,
            f"label_smoothing must lie in [0, .5), not {self.label_smoothing}",
        )
        require(self.max_grad_norm > 0, f"max_grad_norm must be positive, not {self.max_grad_norm}")
        require(self.max_length >= 16, f"max_length must be at least 16, not {self.max_length}")

    @property
    def mix(self) -> dict[str, float]:
        return {
            "expert": self.expert_fraction,
            "replay": self.replay_fraction,
            "inter_model": self.inter_model_fraction,
        }

    @property
    def unread(self) -> dict[str, str]:
        return {}

    @property
    def rounds(self) -> int:
        return -(-self.max_steps // self.resample_every)

    def fitted(self, longest: int) -> DittoConfig:
        """max_new_tokens = 0 stands for what the demonstrations need."""
        return dataclasses.replace(self, sampling=self.sampling.fitted(longest))


# Knobs that some values of `loss` alone read.
READ_BY_LOSS = {
    "beta": ("dpo", "ipo"),
    "simpo_beta": ("simpo",),
    "simpo_gamma": ("simpo",),
    "orpo_weight": ("orpo",),
    "nll_weight": ("dpo", "ipo", "simpo"),
    "changed_span": ("dpo", "ipo"),
}
POSITIVE = ("beta", "simpo_beta", "orpo_weight", "kl_temperature", "learning_rate", "max_grad_norm")
NOT_NEGATIVE = ("simpo_gamma", "nll_weight", "lambda_out", "lambda_near", "weight_decay")
C3PO_LORA = LoRAConfig(rank=64, alpha=128.0, dropout=0.0, target_modules=EVERY_LINEAR)


@dataclass(frozen=True)
class C3POConfig:
    """C3PO (Stephan et al. 2024, arXiv 2402.10893, equation 5 and appendix B)."""

    lora: LoRAConfig = knobs(C3PO_LORA, "lora_", subject="the adapter")
    loss: Literal["dpo", "ipo", "simpo", "orpo", "sft"] = knob(
        "dpo",
        "dpo, ipo, simpo, orpo: revised answers over baselines; sft: learn the revised ones (SCD)",
        subject="how it learns",
    )
    epochs: float = knob(1.0, "times that every in-scope pair is seen (paper 1)")
    pairs_per_step: int = knob(
        16, "in-scope pairs a step, and as many answers near and out of scope (C3PO code 16)"
    )
    beta: float = knob(
        0.1, "DPO's and IPO's beta: how far the policy may leave the base model (paper .1)"
    )
    simpo_beta: float = knob(2.0, "scales SimPO's rewards, nats per token (its paper 2 to 2.5)")
    simpo_gamma: float = knob(1.0, "the margin that SimPO asks for (its paper .3 to 1.6)")
    orpo_weight: float = knob(0.1, "ORPO's lambda: weight of the odds ratio (its paper .1)")
    nll_weight: float = knob(
        0.0, "adds this times the revised answers' loss per token to dpo, ipo or simpo"
    )
    changed_span: bool = knob(
        False, "dpo and ipo compare two answers from their first difference to their last alone"
    )
    lambda_out: float = knob(
        0.2,
        "weight of the out-of-scope constraint; 0: none (paper .2, its code's sigma_soft)",
        subject="what stays as it is",
    )
    lambda_near: float = knob(
        0.1, "weight of the near-scope constraint; 0: none (paper .1, its code's sigma_hard)"
    )
    constraint: Literal["nll", "kl"] = knob(
        "nll",
        "nll: the base model's own answers stay likely; kl: its distribution stays (ablation)",
    )
    constraint_reduction: Literal["token_mean", "sequence_mean", "sum"] = knob(
        "token_mean",
        "token_mean: every token weighs the same (C3PO code); sequence_mean: every answer; "
        "sum: answers count in full, as in DPO",
    )
    kl_temperature: float = knob(
        1.0, "softens both distributions of the kl, which counts its square times (C3PO code 5)"
    )
    kl_share: float = knob(1.0, "the kl's share of its constraint, the rest is nll (C3PO code .5)")
    learning_rate: float = knob(
        5e-5, "peak learning rate, cosine decay (paper 5e-5)", subject="how it learns"
    )
    warmup_ratio: float = knob(0.05, "share of the steps that warm up (paper .05)")
    max_grad_norm: float = knob(1.0, "gradients are scaled down to this norm")
    weight_decay: float = knob(0.0, "AdamW's weight decay")
    max_length: int = knob(2048, "tokens of prompt and answer at most; longer answers are cut")

    def __post_init__(self) -> None:
        require(self.epochs > 0, f"epochs must be positive, not {self.epochs}")
        require(
            self.pairs_per_step >= 1,
            f"pairs_per_step must be at least 1, not {self.pairs_per_step}",
        )
        for name in POSITIVE:
            require(getattr(self, name) > 0, f"{name} must be positive, not {getattr(self, name)}")
        for name in NOT_NEGATIVE:
            require(
                getattr(self, name) >= 0, f"{name} must not be negative, not {getattr(self, name)}"
            )
        require(
            0 <= self.warmup_ratio <= 1, f"warmup_ratio must lie in [0, 1], not {self.warmup_ratio}"
        )
        require(0 < self.kl_share <= 1, f"kl_share must lie in (0, 1], not {self.kl_share}")
        require(self.max_length >= 16, f"max_length must be at least 16, not {self.max_length}")

    @property
    def has_reference(self) -> bool:
        return self.loss in ("dpo", "ipo")

    @property
    def unread(self) -> dict[str, str]:
        loss, constraint = f"--loss {self.loss}", f"--constraint {self.constraint}"
        found = {name: loss for name, losses in READ_BY_LOSS.items() if self.loss not in losses}
        kl = {"kl_temperature": constraint, "kl_share": constraint}
        return found | ({} if self.constraint == "kl" else kl)

    def fitted(self, longest: int) -> C3POConfig:
        """Nothing depends on the data's lengths."""
        return self

    def steps(self, pairs: int) -> int:
        """How many steps the epochs over so many pairs take; the last one is filled up."""
        return math.ceil(self.epochs * pairs / min(self.pairs_per_step, pairs))


@dataclass(frozen=True)
class DistilConfig:
    """On-policy distillation from the same model, which is shown more (arXiv 2601.19897)."""

    lora: LoRAConfig = knobs(LoRAConfig(dropout=0.0), "lora_", subject="the adapter")
    sampling: SamplingConfig = knobs(
        SamplingConfig(max_new_tokens=0), "", subject="how answers are drawn"
    )
    max_steps: int = knob(60, "steps at most", subject="how it learns")
    prompts_per_step: int = knob(4, "prompts that are answered in a step")
    samples_per_prompt: int = knob(2, "answers to each of them")
    shown: int = knob(3, "demonstrations that the teacher sees, the prompt's own among them")
    top_tokens: int = knob(
        20, "likeliest tokens by which policy and teacher are compared; the others count as one"
    )
    learning_rate: float = knob(1e-5, "learning rate, constant after its warm-up")
    warmup_ratio: float = knob(0.1, "share of the steps that warm up")
    max_grad_norm: float = knob(1.0, "gradients are scaled down to this norm")
    weight_decay: float = knob(0.0, "AdamW's weight decay")
    max_length: int = knob(2048, "tokens at most; demonstrations that do not fit are not shown")

    def __post_init__(self) -> None:
        require(
            self.lora.dropout == 0,
            f"lora_dropout must be 0, not {self.lora.dropout}: answers are learned as drawn",
        )
        for name in ("prompts_per_step", "samples_per_prompt", "shown", "top_tokens"):
            require(
                getattr(self, name) >= 1, f"{name} must be at least 1, not {getattr(self, name)}"
            )
        for name in ("max_steps", "weight_decay"):
            require(
                getattr(self, name) >= 0, f"{name} must not be negative, not {getattr(self, name)}"
            )
        for name in ("learning_rate", "max_grad_norm"):
            require(getattr(self, name) > 0, f"{name} must be positive, not {getattr(self, name)}")
        require(
            0 <= self.warmup_ratio <= 1, f"warmup_ratio must lie in [0, 1], not {self.warmup_ratio}"
        )
        require(self.max_length >= 16, f"max_length must be at least 16, not {self.max_length}")

    @property
    def unread(self) -> dict[str, str]:
        return {}

    def fitted(self, longest: int) -> DistilConfig:
        """As DITTO's: max_new_tokens = 0 stands for what the texts need."""
        return dataclasses.replace(self, sampling=self.sampling.fitted(longest))


PAPER = DittoConfig()

# Chosen by measurement on development authors; benchmarks/ditto_study.md has what was tried.
LAPTOP = DittoConfig(
    lora=LoRAConfig(rank=32, alpha=64.0),
    sft=SFTConfig(
        max_steps=30, learning_rate=1e-3, warmup_ratio=0.2, stop_loss=2.4, stop_ratio=0.85
    ),
    sampling=SamplingConfig(max_new_tokens=0),
    max_steps=20,
    resample_every=5,
    samples_per_prompt=5,
    pairs_per_step=12,
    learning_rate=1e-4,
    nll_weight=0.5,
    max_length=512,
)
RECIPES = {"paper": PAPER, "laptop": LAPTOP}
C3PO_PAPER = C3POConfig()

# For a small model and dozens of prompts, not hundreds; benchmarks/c3po.md has what was tried.
C3PO_LAPTOP = C3POConfig(
    lora=LoRAConfig(rank=16, alpha=32.0, dropout=0.0, target_modules=EVERY_LINEAR),
    epochs=3.0,
    pairs_per_step=4,
    lambda_out=0.06,
    lambda_near=0.03,
    constraint="kl",
    constraint_reduction="sum",
    learning_rate=1e-3,
    max_length=512,
)
C3PO_RECIPES = {"paper": C3PO_PAPER, "laptop": C3PO_LAPTOP}

# C3PO's rate is meant for a loss with constraints. Without them it drives the model far from the
# base, where a tenth of it does not (benchmarks/c3po.md, "drift" of "DPO alone").
DPO_RECIPES = {
    "paper": C3PO_PAPER,
    "laptop": dataclasses.replace(C3PO_LAPTOP, learning_rate=1e-4),
}

# A few edits, with the final texts' likelihood beside DPO.
EDITS_RECIPES = {
    "paper": dataclasses.replace(C3PO_PAPER, nll_weight=1.0),
    "laptop": dataclasses.replace(C3PO_LAPTOP, learning_rate=3e-4, nll_weight=1.0),
}

DISTIL_PAPER = DistilConfig()
DISTIL_RECIPES = {
    "paper": DISTIL_PAPER,
    "laptop": DistilConfig(
        lora=LoRAConfig(rank=32, alpha=64.0, dropout=0.0),
        sampling=SamplingConfig(max_new_tokens=0),
        max_steps=30,
        learning_rate=3e-4,
        max_length=1024,
    ),
}
