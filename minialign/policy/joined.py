"""Adapters of projections that a checkpoint stores as one tensor, and so does PEFT's model of it.

Here q, k and v are three layers with an adapter each; there they are one. Three adapters of rank r
are exactly one of rank 3r: its A holds theirs one below the other, its B is block-diagonal. An
adapter that PEFT trained on the whole becomes one of its rank on each part, all with the same A.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from minialign.weights.load import FUSED

Parts = dict[str, list[str]]  # the whole's name -> the parts that its adapter is made of
State = dict[str, Tensor]


def join(model: nn.Module, state: State) -> tuple[State, Parts]:
    """An adapter's tensors as a fused family's checkpoint has them; others' stay as they are."""
    if not _is_fused(model):
        return state, {}
    state, held = dict(state), {}
    for whole, names in FUSED.items():
        for base in _bases(state, names):
            present = [name for name in names if _key(base, name, "A") in state]
            held[whole] = present
            downs = [state.pop(_key(base, name, "A")) for name in present]
            ups = {name: state.pop(_key(base, name, "B")) for name in present}
            rows = _rows(model, base, whole)
            up = torch.zeros(sum(rows.values()), sum(len(down) for down in downs))
            row = column = 0
            for name in names:
                if name in ups:
                    height, width = ups[name].shape
                    up[row : row + height, column : column + width] = ups[name]
                    column += width
                row += rows[name]
            state[_key(base, whole, "A")] = torch.cat(downs)
            state[_key(base, whole, "B")] = up
    return state, held


def split(model: nn.Module, state: State, held: Parts) -> State:
    """Undoes `join` exactly; of a whole that `held` does not name, every part gets all of A."""
    if not _is_fused(model):
        return state
    state = dict(state)
    for whole, names in FUSED.items():
        for base in _bases(state, (whole,)):
            down, up = state.pop(_key(base, whole, "A")), state.pop(_key(base, whole, "B"))
            ups = dict(zip(names, up.split(list(_rows(model, base, whole).values())), strict=True))
            present = held.get(whole, [])
            downs = down.chunk(len(present)) if present else ()
            for name in present or names:
                place = present.index(name) if present else 0
                own = downs[place] if present else down
                columns = slice(place * len(own), (place + 1) * len(own))
                state[_key(base, name, "A")] = own.clone()
                state[_key(base, name, "B")] = ups[name][:, columns].contiguous()
    return state


def part_names(name: str, held: Parts) -> list[str]:
    """The layers here that a layer of the checkpoint stands for."""
    return held.get(name) or list(FUSED.get(name, (name,)))


def _is_fused(model: nn.Module) -> bool:
    config = getattr(model, "config", None)
    return config is not None and config.family.fused


def _key(base: str, name: str, letter: str) -> str:
    return f"{base}.{name}.lora_{letter}.weight"


def _bases(state: State, names: tuple[str, ...]) -> list[str]:
    """The modules, as PEFT's keys have them, in which one of the layers has an adapter."""
    ends = tuple(f".{name}.lora_A.weight" for name in names)
    found = [key.rsplit(".", 3)[0] for key in state if key.endswith(ends)]
    return list(dict.fromkeys(found))


def _rows(model: nn.Module, base: str, whole: str) -> dict[str, int]:
    """How many rows of the whole belong to each part."""
    module = model.get_submodule(base.removeprefix("base_model.model."))
    return {name: getattr(module, name).out_features for name in FUSED[whole]}
