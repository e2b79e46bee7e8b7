"""Complementarity: do two systems serve the same users, or does each serve some that the other misses?"""

from __future__ import annotations

from dataclasses import dataclass

from jaxrec.evals.retrieval import Ranks


@dataclass(frozen=True)
class Complementarity:
    """Two systems in one protocol. A system serves a user if it ranks the user's target among its first k.

    Attributes:
      seen, targets: the protocol, as in `report.Row`.
      k: of "among the first k".
      n: users asked.
      recall_a, recall_b: share of the users that A serves, and that B serves.
      genie: share that at least one of them serves: the recall of an oracle that picks the better system for each user. An ensemble of
        scores may stay below it or, since it can serve users that neither serves, exceed it.
    """

    seen: str
    targets: str
    k: int
    n: int
    recall_a: float
    recall_b: float
    genie: float

    @property
    def jaccard(self) -> float:
        """|A and B| / |A or B| of the users served, by inclusion and exclusion (recall A + recall B - Genie) / Genie; NaN if neither serves any.

        1 where both serve the same users, 0 where no user is served by both. Systems complement each other where it is lower than between
        two seeds of either.
        """
        return (self.recall_a + self.recall_b - self.genie) / self.genie if self.genie else float("nan")


def complementarity(a: Ranks, b: Ranks, *, k: int = 10, names: tuple[str, str] = ("A", "B")) -> list[Complementarity]:
    """Jaccard@k and Genie@k (Collins et al. 2025, arXiv 2512.17820) in every protocol in which somebody was asked.

    Raises:
      ValueError: the two were asked different questions; it says which. Or k < 1.
    """
    if k < 1:
        raise ValueError(f"k={k} leaves nobody served; ask for k >= 1")
    a.check_same_questions(b, *names)
    rows = []
    for (seen, targets, rank_a, _), (_, _, rank_b, _) in zip(a.by_user().protocols(), b.by_user().protocols(), strict=True):
        if n := len(rank_a):
            served_a, served_b = rank_a <= k, rank_b <= k
            rows.append(Complementarity(seen, targets, k, n, *(float(served.sum() / n) for served in (served_a, served_b, served_a | served_b))))
    return rows


def text(rows: list[Complementarity], names: tuple[str, str] = ("A", "B")) -> str:
    """The measures as monospaced text, a line per protocol."""
    first, second = names
    protocols = [f"{row.seen}, {row.targets}: {row.n:,} users" for row in rows]
    width = max(map(len, protocols), default=0)
    k = rows[0].k if rows else 10
    columns = [f"{first} Recall@{k}", f"{second} Recall@{k}", f"Genie@{k}", f"Jaccard@{k}"]
    lines = [" " * width + "".join(f"  {column}" for column in columns)]
    for protocol, row in zip(protocols, rows, strict=True):
        values = (row.recall_a, row.recall_b, row.genie, row.jaccard)
        lines.append(f"{protocol:{width}}" + "".join(f"  {value:{len(column)}.4f}" for column, value in zip(columns, values, strict=True)))
    return "\n".join(lines) + "\n"
