"""Scores under a frozen reference, each computed once."""

from __future__ import annotations

from collections.abc import Sequence as Sequence

import torch
from torch import Tensor

from minialign.data.records import Example
from minialign.model.transformer import CausalLM
from minialign.policy.adapters import adapter_parameters
from minialign.policy.packing import ragged, rows_of
from minialign.policy.peft import adapter_hash
from minialign.policy.reference import is_policy, reference_policy
from minialign.policy.score import score


class ReferenceScores:
    """Scores under a frozen reference policy (adapter `name`, or the base for None).

    Sequences not seen before are scored together, in the same layout as the policy scores them:
    where the policy *is* the reference (DITTO's first step), the two agree to the last bit and the
    loss is ln 2 exactly. (A sequence that stands in two parts of that step is scored with each:
    a layout of its own may round in its own way.) Should the reference change after all, which its
    content's hash tells, everything known is forgotten.
    """

    def __init__(self, model: CausalLM, name: str | None) -> None:
        self.model, self.name = model, name
        self.known: dict[Example, float] = {}
        self._versions = self._parameter_versions()
        self._hash = adapter_hash(model, name)

    def __call__(self, sequences: Sequence[Example]) -> Tensor:
        """(len(sequences),) float32 without gradient, on the model's device."""
        self._forget_if_changed()
        asked = [s for s in dict.fromkeys(sequences) if s not in self.known]
        if len(asked) < len(set(sequences)) and is_policy(self.model, self.name):
            asked = list(dict.fromkeys(sequences))
        if asked:
            with reference_policy(self.model, self.name):
                scores = score(self.model, asked)
            self.known.update(zip(asked, scores.tolist(), strict=True))
        return torch.tensor([self.known[s] for s in sequences], device=self.model.device)

    def note(self, sequences: Sequence[Example], scores: Tensor) -> None:
        """Takes over what another process found."""
        self._forget_if_changed()
        self.known.update(zip(sequences, scores.tolist(), strict=True))

    def state(self) -> dict[str, Tensor]:
        """What is known so far; each prompt once."""
        self._forget_if_changed()
        prompts = list(dict.fromkeys(example.prompt_ids for example in self.known))
        place = {prompt: number for number, prompt in enumerate(prompts)}
        prompt_ids, prompt_lengths = ragged(prompts)
        ids, lengths = ragged([example.completion_ids for example in self.known])
        return {
            **{"prompt_ids": prompt_ids, "prompt_lengths": prompt_lengths},
            **{"completion_ids": ids, "completion_lengths": lengths},
            "prompts": torch.tensor([place[example.prompt_ids] for example in self.known]).long(),
            "scores": torch.tensor(list(self.known.values()), dtype=torch.float64),
        }

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Takes over scores of the reference as it is now."""
        prompts = rows_of(state["prompt_ids"], state["prompt_lengths"])
        completions = rows_of(state["completion_ids"], state["completion_lengths"])
        places, scores = state["prompts"].tolist(), state["scores"].tolist()
        self.known = {
            Example(prompts[place], completion): score
            for place, completion, score in zip(places, completions, scores, strict=True)
        }
        self._versions = self._parameter_versions()
        self._hash = adapter_hash(self.model, self.name)

    def _parameter_versions(self) -> list[tuple[int, int]]:
        """Changes whenever an adapter tensor is written to, and is cheap enough for every call."""
        tensors = adapter_parameters(self.model, self.name) if self.name else []
        return [(id(tensor), tensor._version) for tensor in tensors]

    def _forget_if_changed(self) -> None:
        versions = self._parameter_versions()
        if versions == self._versions:
            return
        current = adapter_hash(self.model, self.name)
        if current != self._hash:
            self.known.clear()
        self._versions, self._hash = versions, current
