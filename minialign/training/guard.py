"""What ends a training before its last step, and which of its states becomes the result.

States are kept where `--keep best` or `--stop-on-collapse` asks for it, and of the stage that was
trained last. Where demonstrations are held out, it is the one with the lowest held-out loss, of all
that were measured: at the ends of a method's rounds, and of each quarter of the stage's steps.
Where there are none, it is the last quarter's end that a whole quarter without a warning followed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from minialign.data.records import Example
from minialign.model.transformer import CausalLM
from minialign.policy.adapters import active_adapter
from minialign.policy.measure import nats_per_token
from minialign.policy.peft import adapter_state, load_adapter_state
from minialign.policy.reference import reference_policy
from minialign.training.collapse import KEPT_UNSEEN, UNSEEN, Watch
from minialign.training.knobs import seconds_of

# How many parts a stage's steps have; where DITTO's recipes have rounds, they are these.
QUARTERS = 4


class Kept(NamedTuple):
    """The trained adapter after `step` steps, and its held-out loss, infinite where unmeasured."""

    step: int
    loss: float
    tensors: dict[str, Tensor]


class Guard:
    """Sees every line of metrics, and says when a run is over."""

    def __init__(
        self,
        keep: str = "last",
        stop_on_collapse: bool = False,
        time_budget: str = "",
        held_out: Sequence[Example] = (),
    ) -> None:
        self.keep, self.stop_on_collapse = keep, stop_on_collapse
        self.time_budget, self.seconds = time_budget, seconds_of(time_budget)
        self.held_out = held_out
        # Why no step follows; empty while one does.
        self._over = ""
        # Whether the step under way is its stage's last, once that was asked.
        self._is_last: bool | None = None
        self._watch = Watch()
        self._collapsed = False
        self._kept: list[Kept] = []
        self._stage, self.taken, self._total = "", 0, 0
        self._model: CausalLM | None = None

    @property
    def keeps(self) -> bool:
        return self.keep == "best" or self.stop_on_collapse

    def begin(self, model: CausalLM, stage: str, first: int, total: int, elapsed: float) -> None:
        """A stage begins or, with another `first` step than 0, goes on."""
        if first == 0:
            self._look_at_clock(elapsed)
        if self._over:
            return
        self._is_last = None
        self._model, self._stage, self.taken, self._total = model, stage, first, total
        if first == 0:
            self._kept = [self._state(math.inf)] if self.keeps else []

    def why_over(self, step: int, elapsed: float) -> str:
        """Why `step` is not to be taken; empty where it is."""
        # After a step that was said not to be the last one there is another.
        if self._is_last is None:
            self._look_at_clock(elapsed)
        if not self._over:
            self._is_last, self.taken = None, step + 1
        return self._over

    def is_last(self, elapsed: float) -> bool:
        """Whether the step that was just taken is its stage's last; all else knows it then."""
        if self._is_last is None:
            self._look_at_clock(elapsed)
            self._is_last = self.taken == self._total or bool(self._over)
        return self._is_last

    def _look_at_clock(self, elapsed: float) -> None:
        if elapsed >= self.seconds and not self._over:
            self._over = f"--time-budget {self.time_budget} is used up"

    # ---- what was measured ----

    def measured(self, metrics: dict[str, Any], max_tokens: int) -> dict[str, float]:
        """The held-out loss, where a step is to have one and the method has not measured it."""
        if UNSEEN in metrics or not self.held_out or not self._ends_quarter:
            return {}
        assert self._model is not None
        with reference_policy(self._model, active_adapter(self._model)):
            nats = nats_per_token(self._model, self.held_out, max_tokens)
        assert nats is not None
        return {UNSEEN: nats}

    @property
    def _ends_quarter(self) -> bool:
        is_last = self._is_last or self.taken == self._total
        return self.keeps and (is_last or self.taken % math.ceil(self._total / QUARTERS) == 0)

    def see(self, line: dict[str, Any]) -> list[str]:
        """The warnings that a new line of metrics brings."""
        found = self._watch.see(line)
        if found and self.stop_on_collapse and not self._collapsed:
            self._collapsed, self._over = True, "it collapses"
        return found

    def see_again(self, line: dict[str, Any]) -> None:
        """A line that another process wrote before the run was resumed."""
        self._watch.see(line)

    def offer(self, loss: float | None) -> None:
        """The state after the step that was taken last may be the one to keep."""
        if not self._kept:
            return
        if self.held_out:
            if loss is not None and loss < self._kept[0].loss:
                self._kept = [self._state(loss)]
        elif self._ends_quarter and not self._collapsed:
            self._kept = [*self._kept[-1:], self._state(math.inf)]

    def _state(self, loss: float) -> Kept:
        model = self._model
        assert model is not None
        name = active_adapter(model)
        assert name is not None
        tensors = {key: tensor.clone() for key, tensor in adapter_state(model, name).items()}
        return Kept(self.taken, loss, tensors)

    # ---- the result ----

    def put_back(self, model: CausalLM) -> tuple[str, str, dict[str, float]] | None:
        """Gives the trained adapter the state to keep.

        Returns the stage, what to say of it, and its figures; None where the last state stays.
        """
        if not self._kept or not (self._collapsed or self.keep == "best"):
            return None
        best, name = self._kept[0], active_adapter(model)
        is_measured = best.loss < math.inf
        if name is None or not (is_measured or self._collapsed):
            return None
        load_adapter_state(model, name, best.tensors, "the state to keep")
        why = "a quarter of the steps without a warning followed"
        if is_measured:
            why = f"its held-out loss, {best.loss:.2f} nats per token, was the lowest"
        elif best.step == 0:
            why = "no quarter of the steps passed without a warning"
        figures = {"kept/step": best.step} | ({KEPT_UNSEEN: best.loss} if is_measured else {})
        return self._stage, f"kept as it was after step {best.step}: {why}", figures

    # ---- what --resume needs ----

    def state(self) -> dict[str, Tensor]:
        found = {
            f"{place}/{key}": tensor
            for place, kept in enumerate(self._kept)
            for key, tensor in kept.tensors.items()
        }
        if not found:
            return {}
        steps, losses = zip(*(kept[:2] for kept in self._kept), strict=True)
        numbers = {"losses": torch.tensor(losses, dtype=torch.float64)}
        return {**found, **numbers, "steps": torch.tensor(steps)}

    def load_state(self, state: dict[str, Tensor]) -> None:
        self._kept = []
        if not state:
            return
        pairs = zip(state["steps"].tolist(), state["losses"].tolist(), strict=True)
        for place, (step, loss) in enumerate(pairs):
            prefix = f"{place}/"
            tensors = {k.removeprefix(prefix): t for k, t in state.items() if k.startswith(prefix)}
            self._kept.append(Kept(step, loss, tensors))
