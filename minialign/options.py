"""The scripts' flags that are no knob of a method: what to read, where to write, which device.

Dataclass fields as in config.py, from which cli.py derives the command lines. `sample.py
--feedback` has flags of its own, in feedback_command.py.

This module imports nothing heavy: `--help` reads it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from minialign.config import SamplingConfig, knob, require


@dataclass(frozen=True)
class TrainOptions:
    """What train.py needs besides the method's knobs."""

    method: Literal["ditto", "sft", "spin", "c3po", "dpo", "sft-weighted"] = knob(
        "ditto",
        "from --demos: ditto (SFT, then rounds of sampling and DPO), sft (its first part alone), "
        "spin (self-play); from --data: c3po, and its baselines dpo (no constraint), sft (revised "
        "answers alone), sft-weighted (with the constraints)",
    )
    demos: str = knob("", "demonstrations, JSON Lines of {prompt, completion} or {messages}")
    test: str = knob(
        "", "held-out demonstrations; by default NAME_test.jsonl beside --demos, if it is there"
    )
    data: str = knob(
        "",
        "a folder of feedback: feedback.json and a file of prompts a scope; several, to learn at "
        "once, with commas between; or preference pairs, JSON Lines of {prompt, chosen, rejected}, "
        "for dpo and sft",
    )
    feedback: str = knob(
        "",
        "or a sentence, of which such a folder is made first, by the model that is trained: "
        "sample.py --feedback has more to choose",
    )
    init_adapter: str = knob("", "go on from this run's or folder's adapter (with --data)")
    out: str = knob("", "run folder; by default runs/NAME of --demos or --data")
    model: str = knob(
        "",
        "alias, hub id or folder; by default smollm2-135m-instruct, on a GPU mistral-7b-instruct",
    )
    revision: str = knob("", "the hub's branch, tag or commit")
    recipe: Literal["auto", "paper", "laptop"] = knob(
        "auto", "the knobs to start from; auto: paper on a GPU, else laptop"
    )
    device: str = knob("auto", "auto, cpu, cuda, cuda:1, mps")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = knob(
        "auto", "of the base model; adapters are float32"
    )
    seed: int = knob(0, "the same seed gives the same run")
    micro_batch_tokens: int = knob(
        1024,
        "tokens in flight, of one prompt up to twice as many: memory depends on it, gradients not",
    )
    activation_checkpointing: Literal["none", "cheap", "full"] = knob(
        "cheap",
        "what the backward pass computes again: nothing; what is cheap; or whole layers, for half "
        "more time and a tenth of the memory",
    )
    prompt: str = knob(
        "", "what is answered before and after; by default the first held-out prompt"
    )
    sweep: tuple[str, ...] = knob(
        (),
        "KNOB=VALUE,VALUE: a run for each value (again --sweep: each combination), in folders of "
        "their own in --out",
    )
    resume: str = knob("", "go on with the interrupted run in this folder; its knobs are kept")
    overwrite: bool = knob(False, "replace the run that --out holds")
    inspect: bool = knob(
        False, "print a demonstration's or pair's exact tokens, which are trained on, and exit"
    )

    def __post_init__(self) -> None:
        require(
            self.micro_batch_tokens >= 1,
            f"micro_batch_tokens must be at least 1, not {self.micro_batch_tokens}",
        )
        require(0 <= self.seed < 2**63, f"seed must lie in [0, 2^63), not {self.seed}")


@dataclass(frozen=True)
class SampleOptions:
    """sample.py's flags."""

    prompt: str = knob("", "what to answer")
    prompts: str = knob("", "or a file of prompts, JSON Lines of {prompt} or {messages}")
    chat: bool = knob(
        False, "or a conversation in the terminal; /adapter off and /adapter on compare"
    )
    adapter: tuple[str, ...] = knob(
        (),
        "a run folder, or an adapter folder in PEFT's format; several (again --adapter) are added "
        "up, FOLDER=0.5 by half",
    )
    n: int = knob(1, "answers a prompt")
    out: str = knob("", "write the answers to --prompts into this file, a line each")
    max_new_tokens: int = knob(400, "tokens an answer at most")
    temperature: float = knob(0.7, "0 takes the likeliest token; 1 is the model as it is")
    top_p: float = knob(1.0, "keep the likeliest tokens that hold this share of the probability")
    top_k: int = knob(0, "keep this many of the likeliest tokens; 0: all")
    seed: int = knob(0, "the same seed gives the same answers")
    model: str = knob(
        "", "alias, hub id or folder; by default the one that the adapter was trained on"
    )
    revision: str = knob("", "the hub's branch, tag or commit")
    device: str = knob("auto", "auto, cpu, cuda, cuda:1, mps")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = knob("auto", "of the base model")
    overwrite: bool = knob(False, "replace the file --out")

    def __post_init__(self) -> None:
        require(self.n >= 1, f"n must be at least 1, not {self.n}")
        require(
            self.max_new_tokens >= 1,
            f"max_new_tokens must be at least 1, not {self.max_new_tokens}",
        )
        require(0 <= self.seed < 2**63, f"seed must lie in [0, 2^63), not {self.seed}")
        SamplingConfig(
            self.max_new_tokens, self.temperature, self.top_p, self.top_k
        )  # checks the rest


@dataclass(frozen=True)
class EvaluateOptions:
    """evaluate.py's flags, after the run folders."""

    against: tuple[str, ...] = knob(
        ("base", "few-shot", "sft"),
        "contestants: base, few-shot, sft, spin (of RUN-spin), a run folder, a file of answers",
    )
    judges: tuple[str, ...] = knob(
        ("style",), "who judges: style (offline), model (--judge-model, --judge-url)"
    )
    test: str = knob(
        "",
        "held-out demonstrations, or a folder of feedback, as the run learned from; by default "
        "the run's own",
    )
    n: int = knob(4, "answers a prompt and contestant")
    max_new_tokens: int = knob(0, "tokens an answer at most; 0: 1.25 x the longest held-out text")
    temperature: float = knob(1.0, "of the answers")
    others: str = knob(
        "", "other people's texts, for the style judge: JSON Lines of {text} or demonstrations"
    )
    judge_model: str = knob("", "the model that judges: a name at --judge-url, or a local model")
    judge_url: str = knob(
        "", "an OpenAI-compatible endpoint; its key is taken from MINIALIGN_API_KEY"
    )
    general: int = knob(12, "general prompts on which the drift from the base is measured; 0: none")
    compare: bool = knob(
        False, "compare the runs' curves and knobs on one page instead: runs/comparison.html"
    )
    show: int = knob(2, "prompts whose answers are printed side by side")
    seed: int = knob(0, "the same seed gives the same answers")
    device: str = knob("auto", "auto, cpu, cuda, cuda:1, mps")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = knob("auto", "of the base model")
    micro_batch_tokens: int = knob(
        1024,
        "tokens in flight, of one prompt up to twice as many: memory depends on it, gradients not",
    )

    def __post_init__(self) -> None:
        require(self.n >= 1, f"n must be at least 1, not {self.n}")
        require(self.show >= 0, f"show must not be negative, not {self.show}")
        require(self.general >= 0, f"general must not be negative, not {self.general}")
        for judge in self.judges:
            require(judge in ("style", "model"), f"judges: {judge!r} is not one of style, model")
        wants_model = "model" in self.judges
        require(
            wants_model == bool(self.judge_model),
            "--judges model and --judge-model NAME need each other",
        )
        require(
            wants_model or not self.judge_url, "--judge-url needs --judges model --judge-model NAME"
        )
        require(0 <= self.seed < 2**63, f"seed must lie in [0, 2^63), not {self.seed}")
        require(
            self.micro_batch_tokens >= 1,
            f"micro_batch_tokens must be at least 1, not {self.micro_batch_tokens}",
        )
        SamplingConfig(self.max_new_tokens, self.temperature)  # checks the rest


# C3PO's responses are sampled at .7 (arXiv 2402.10893, appendix), one to a prompt.
FEEDBACK_EVALUATION = EvaluateOptions(n=1, temperature=0.7)
