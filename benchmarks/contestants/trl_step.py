"""TRL's DPOTrainer over a PEFT model, fed with the same token ids through its own collator.

`padding_free` cannot be used: TRL 1.16 falls back to padding. Its chunked log-probabilities are
always on.
"""

from __future__ import annotations

import warnings
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch

from minialign.data.records import Example

from .measuring import Memory, Result, timed
from .models import adapters, load_theirs
from .workloads import comparisons

BETA = 0.05

Pair = tuple[Example, Example]  # chosen, rejected


def step(options: Namespace, folder: Path) -> Result:
    trainer = dpo_trainer(options, folder)
    model = trainer.model
    pairs = [(c.chosen, c.rejected) for c in comparisons(options)]
    pairs.sort(key=lambda pair: max(len(pair[0]), len(pair[1])))  # its best case: little padding
    parts = [pairs[i : i + options.batch] for i in range(0, len(pairs), options.batch)]
    memory = Memory()

    batches = [collated(trainer, part) for part in parts]
    if options.precomputed:
        for batch in batches:
            chosen, rejected = trainer.compute_ref_log_probs(model, batch)
            batch |= {"ref_chosen_logps": chosen, "ref_rejected_logps": rejected}

    def one_step(batches: list[Any], count: int) -> None:
        for parameter in model.parameters():
            parameter.grad = None
        model.train()  # as the trainer does; the adapters have no dropout
        for batch, part in zip(batches, parts, strict=False):
            with trainer.compute_loss_context_manager():  # autocast, where bf16 is asked for
                loss = trainer.compute_loss(model, batch)  # the mean of its pairs
            (loss * len(part) / count).backward()

    warm_up = collated(trainer, pairs[:1])
    if options.precomputed:
        warm_up |= {"ref_chosen_logps": torch.zeros(1), "ref_rejected_logps": torch.zeros(1)}
    one_step([warm_up], 1)
    seconds = timed(lambda: one_step(batches, len(pairs)), options.runs)
    return {
        "seconds": seconds,
        "peak_bytes": memory.peak(),
        "computed_tokens": sum(len(a) + len(b) for a, b in pairs),
        "gradients": adapter_gradients(model),
    }


def dpo_trainer(options: Namespace, folder: Path) -> Any:
    """Its reference is one adapter, the policy that it trains is the other."""
    from datasets import Dataset
    from peft import PeftModel, set_peft_model_state_dict
    from peft.utils import load_peft_weights
    from transformers import AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    warnings.filterwarnings("ignore")
    reference_folder, policy_folder = adapters(options.model, folder)
    base = load_theirs(options.model, options.dtype)
    peft = PeftModel.from_pretrained(base, str(reference_folder), is_trainable=True)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    arguments = DPOConfig(
        output_dir=str(folder / "trl"),
        per_device_train_batch_size=options.batch,
        gradient_checkpointing=options.gradient_checkpointing,
        precompute_ref_log_probs=options.precomputed,
        max_length=None,
        beta=BETA,
        use_cpu=True,
        bf16=options.dtype == "bfloat16",
        report_to=[],
        disable_tqdm=True,
        save_strategy="no",
    )
    tiny = Dataset.from_dict({"prompt": ["a"], "chosen": [" b"], "rejected": [" c"]})
    trainer = DPOTrainer(
        peft, args=arguments, train_dataset=tiny, processing_class=tokenizer
    )  # the reference is a copy of the adapter, as it is now
    set_peft_model_state_dict(peft, load_peft_weights(str(policy_folder)), adapter_name="default")
    if options.gradient_checkpointing:  # Trainer.train() would switch it on
        trainer.model.gradient_checkpointing_enable({"use_reentrant": False})
    assert options.gradient_checkpointing == any(
        getattr(module, "gradient_checkpointing", False) for module in trainer.model.modules()
    )
    return trainer


def collated(trainer: Any, pairs: list[Pair]) -> dict[str, torch.Tensor]:
    return trainer.data_collator(
        [
            {
                "prompt_ids": list(a.prompt_ids),
                "chosen_ids": list(a.completion_ids),
                "rejected_ids": list(b.completion_ids),
            }
            for a, b in pairs
        ]
    )


def adapter_gradients(model: Any) -> dict[str, torch.Tensor]:
    """By the names of the modules in the model without PEFT."""
    gradients = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None and ".default." in name:
            path = name.removeprefix("base_model.model.").removesuffix(".default.weight")
            gradients[path] = parameter.grad
    return gradients
