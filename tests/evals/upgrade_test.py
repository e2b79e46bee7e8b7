"""Upgrades: the measures by hand, and refusals."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from jaxrec.evals.retrieval import Ranks
from jaxrec.evals.upgrade import Upgrade, UpgradeRetrieval
from jaxrec.methods.sequential import sasrec


def ranks_of(*kept) -> Ranks:
    kept = np.asarray(kept, np.int32)
    return Ranks(kept, kept, np.zeros(len(kept), bool), np.arange(len(kept)), np.arange(len(kept)) + 1)


PAIRS = {"M(n,n)": ranks_of(1, 2, 9, 11), "M(n,o)": ranks_of(3, 10, 20, 20), "M(o,o)": ranks_of(4, 30, 30, 30)}
FREE = ranks_of(1, 1, 1, 10)


def test_of_ranks_by_hand():
    upgrade = Upgrade.of(PAIRS, FREE, "Recall@10")
    assert upgrade == Upgrade(old_old=0.25, new_old=0.5, new_new=0.75, free_free=1.0)
    assert upgrade.compatible
    assert upgrade.gain == pytest.approx((0.5 - 0.25) / (1.0 - 0.25))
    assert upgrade.cost == pytest.approx((0.75 - 1.0) / 1.0)
    discount = Upgrade.of(PAIRS, FREE)  # NDCG@10
    assert discount.old_old == pytest.approx(1 / math.log2(5) / 4) and discount.new_old == pytest.approx((0.5 + 1 / math.log2(11)) / 4)


def test_to_be_as_good_is_not_to_be_better():
    level = Upgrade(0.3, 0.3, 0.6, 0.5)
    assert not level.compatible and level.gain == 0 and level.cost == pytest.approx(0.2)
    assert not Upgrade(0.3, 0.2, 0.6, 0.5).compatible and Upgrade(0.3, 0.2, 0.6, 0.5).gain == pytest.approx(-0.5)


def test_where_there_is_nothing_to_win_there_is_no_share_of_it():
    assert math.isnan(Upgrade(0.3, 0.4, 0.5, 0.3).gain) and math.isnan(Upgrade(0.0, 0.1, 0.1, 0.0).cost)


def test_what_cannot_be_measured_is_refused():
    with pytest.raises(ValueError, match="metric 'CMC@1' is not measured; choose one of Recall@5"):
        Upgrade.of(PAIRS, FREE, "CMC@1")
    with pytest.raises(ValueError, match="metric 'CMC@1' is not measured; choose one of Recall@5"):
        UpgradeRetrieval("CMC@1").check(None)
    with pytest.raises(ValueError, match=r"M\(n,n\) and M\(n\*,n\*\) have different targets"):
        Upgrade.of(PAIRS, dataclasses.replace(FREE, target=FREE.target + 1))
    with pytest.raises(ValueError, match="SASRec has no old model to be compatible with; UpgradeRetrieval is for HBCT"):
        list(UpgradeRetrieval()(sasrec.tiny()[0], None, None))
