"""What semantic IDs are like on real items, by how many levels and codes they have, and over time. No model is trained.

    JAXREC_DATA_DIR=... python -m benchmarks.sid_quality

Residual k-means of text vectors (TF-IDF and SVD) of Amazon Beauty's titles, as experiments/tiger_small_beauty.py has it. A row per number of levels and codes:

  unique      the share of different IDs among items;  used: of the codes, the least level's share;  error: what the codes leave of the variance
  random, by popularity   given the right ID, how often the item that is chosen among those that share it is the user's next one (test split)

and a row for a catalogue of which a tenth was replaced: of the items that both have, the share whose ID (and whose first code) stayed the same when IDs are
made anew, made anew with the numbers of before (`previous`), and when new items get IDs from the old codebooks (`extended`).
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np

from benchmarks.record import record
from jaxrec.artifact import Artifact, say
from jaxrec.data.builders.amazon_p5 import AmazonP5
from jaxrec.data.source import Source
from jaxrec.data.splits import LeaveOneOut
from jaxrec.stages.embeddings import TextEmbeddings
from jaxrec.stages.quantizers import ResidualKMeans
from jaxrec.stages.semantic_ids import SemanticIds, SidTable, shared, stability
from jaxrec.stages.sid_report import report
from jaxrec.stages.sid_trie import ItemCounts
from jaxrec.stages.text_encoders import TfidfSvd

SIZES = ((2, 256), (3, 64), (3, 128), (3, 256), (3, 512), (4, 256))  # levels, codes
CHANGED = 0.1
MANY = 1_000_000


@dataclass(frozen=True)
class Catalogue(Source):
    """Some of the items of another source, in its order: names alone."""

    whole: Source
    seed: int
    left_out: float

    def rows(self) -> np.ndarray:
        """The places of the items that are kept, from 0."""
        items = len(self.whole.get().items)
        return np.sort(np.random.default_rng(self.seed).permutation(items)[: round(items * (1 - self.left_out))])

    def get(self) -> Any:
        names = self.whole.get().items
        return SimpleNamespace(items=[names[row] for row in self.rows()])


@dataclass(frozen=True)
class Vectors(Artifact):
    """The vectors of a `Catalogue`."""

    source: Catalogue
    whole: Artifact

    def get(self) -> np.ndarray:
        return self.whole.get()[np.concatenate([[0], 1 + self.source.rows()])]


def main() -> None:
    source = AmazonP5("beauty")
    vectors = TextEmbeddings(source, TfidfSvd(dim=256))
    record("sid_quality", [size(source, vectors, levels, codes) for levels, codes in SIZES])
    record("sid_quality", [changed(source, vectors), many(vectors)])


def size(source: Source, vectors: Artifact, levels: int, codes: int) -> dict[str, object]:
    """The facts of one size, and what the choice among items of one ID is worth."""
    sids = SemanticIds(vectors, ResidualKMeans(levels=levels, codes=codes), dedup="none")
    interactions, table = source.get(), sids.get()
    facts = report(table, vectors.get(), interactions.titles(), sids.reconstructed())
    test = LeaveOneOut().cuts(interactions).test
    asked = np.flatnonzero(test >= 0)
    targets = np.asarray(interactions.sequence)[np.asarray(interactions.offsets)[asked] + test[asked]]
    random, popular = right_choices(table, np.asarray(ItemCounts(source).get()), targets)
    last = facts["levels"][-1]
    return {
        "name": f"{levels} levels of {codes} codes",
        "ours": {"unique": round(last["unique"], 4), "used": round(min(level["used"] / level["width"] for level in facts["levels"]), 4)},
        "unit": "share",
        "error": round(last["relative_mse"], 4),
        "perplexity": [round(level["perplexity"], 1) for level in facts["levels"]],
        "largest": facts["largest"]["items"],
        "right choice": {"random": round(random, 4), "by popularity": round(popular, 4)},
        "items": facts["items"],
    }


def right_choices(table: SidTable, counts: np.ndarray, targets: np.ndarray) -> tuple[float, float]:
    """How often the item chosen among those with a target's ID is the target: by a uniform draw (expected), and by the highest count, equal ones by id."""
    _, group, members = np.unique(table.codes[1:], axis=0, return_inverse=True, return_counts=True)
    group = group.reshape(-1)
    order = np.lexsort((np.arange(len(group)), -counts[1:], group))
    first = np.zeros(len(group), bool)
    first[order[np.concatenate([[0], np.cumsum(members)[:-1]])]] = True
    return float((1 / members[group[targets - 1]]).mean()), float(first[targets - 1].mean())


def changed(source: Source, vectors: Artifact) -> dict[str, object]:
    """How many items keep their IDs when a tenth of the catalogue is replaced by others."""
    whole = source.get().items
    before, after = (Catalogue(source, seed, CHANGED) for seed in (1, 2))
    quantizer = ResidualKMeans(levels=3, codes=256)
    old = SemanticIds(Vectors(before, vectors), quantizer, dedup="none")
    found = {}
    for name, sids in {
        "made anew": SemanticIds(Vectors(after, vectors), quantizer, dedup="none", seed=1),
        "made anew with the numbers of before": SemanticIds(Vectors(after, vectors), quantizer, dedup="none", seed=1, previous=old),
    }.items():
        found[name] = stability(*shared(old.get(), sids.get(), before.get().items, after.get().items))
    extended = old.extended(vectors.get()[1 + np.setdiff1d(after.rows(), before.rows())])
    kept = SidTable(extended.codes[: old.get().size + 1], extended.widths, extended.levels)
    found["extended"] = stability(old.get(), kept)
    say(f"{len(whole):,} items, of which each catalogue leaves out {CHANGED:.0%}")
    return {
        "name": "items that keep their IDs, a tenth of the catalogue changed",
        "ours": {name: round(each[-1], 4) for name, each in found.items()},
        "unit": "share of the items that both catalogues have",
        "first code": {name: round(each[0], 4) for name, each in found.items()},
    }


def many(vectors: Artifact) -> dict[str, object]:
    """How long a million new items take to get their codes."""
    sids = SemanticIds(vectors, ResidualKMeans(levels=3, codes=256), dedup="none")
    known = np.asarray(vectors.get()[1:])
    new = known[np.random.default_rng(0).integers(len(known), size=MANY)]
    sids.assign(new)  # compiles
    begin = time.perf_counter()
    sids.assign(new)
    return {"name": f"assigning {MANY:,} items", "ours": round(time.perf_counter() - begin, 2), "unit": "s", "dim": known.shape[1]}


if __name__ == "__main__":
    main()
