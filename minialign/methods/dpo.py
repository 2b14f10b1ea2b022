"""DPO: direct preference optimization (Rafailov et al. 2023, arXiv 2305.18290), from pairs.

On preference pairs it is what it says. On a feedback's data it is C3PO without its constraints, the
row of that paper's Table 2 that generalises too far. Both are C3PO's loop with settings that the
card fixes. `loss` puts IPO, SimPO or ORPO in its place.
"""

from __future__ import annotations

from minialign.methods.c3po import train, work

__all__ = ["train", "work"]
