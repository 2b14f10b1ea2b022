"""Who is seen when."""

from __future__ import annotations

from minialign.data.records import Example
from minialign.training.dealing import deal


def test_sft_batches_deal_every_demonstration_before_any_twice() -> None:
    items = [Example((1,), (i,)) for i in range(7)]
    dealt = [s for step in range(7) for s in deal(items, 3, step, "0/sft")]
    for epoch in range(3):
        assert set(dealt[7 * epoch : 7 * (epoch + 1)]) == set(items)
    assert dealt[:7] != dealt[7:14]
    assert len(deal(items[:2], 5, 0, "0/sft")) == 2
