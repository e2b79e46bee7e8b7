"""Compare: is one system better than another on the same users, or was it luck?"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from jaxrec.evals.report import PLACES, measure
from jaxrec.evals.retrieval import Ranks


@dataclass(frozen=True)
class Difference:
    """One metric of system A minus that of system B, user by user.

    Attributes:
      seen, targets: the protocol, as in `report.Row`.
      metric: its name.
      n: users asked.
      mean: mean difference, above 0 where A is better.
      low, high: 95 % bootstrap confidence interval of the mean.
      p: two-sided p-value of the null hypothesis that the two systems are exchangeable. Not corrected for how many you look at.
      wins, losses: users for whom A is better, and worse; for all others they are even.
    """

    seen: str
    targets: str
    metric: str
    n: int
    mean: float
    low: float
    high: float
    p: float
    wins: int
    losses: int


def compare(a: Ranks, b: Ranks, *, resamples: int = 1000, flips: int = 10_000, seed: int = 0, names: tuple[str, str] = ("A", "B")) -> list[Difference]:
    """Differences of all metrics in every protocol in which somebody was asked.

    The interval is the percentile bootstrap over users; p is the share of random sign flips of the users' differences whose mean is as
    far from 0 as the true one, counting the true one itself, so it is never below 1 / (flips + 1) (Fisher, 1935; Smucker, Allan and
    Carterette, CIKM 2007). Both are drawn from the counts of users by their pair of ranks, as in `report.summarise`.

    Raises:
      ValueError: the two were asked different questions; it says which.
    """
    a.check_same_questions(b, *names)
    a, b = a.by_user(), b.by_user()
    random = np.random.default_rng(seed)
    values = measure(np.arange(1, PLACES + 1))
    differences = []
    for (seen, targets, rank_a, _), (_, _, rank_b, _) in zip(a.protocols(), b.protocols(), strict=True):
        if not (n := len(rank_a)):
            continue
        pairs = np.minimum(rank_a, PLACES) * PLACES + np.minimum(rank_b, PLACES) - (PLACES + 1)
        count = np.bincount(pairs, minlength=PLACES**2).reshape(PLACES, PLACES)  # [places of A, places of B]
        drawn = random.multinomial(n, count.ravel() / n, size=resamples)
        flipped = _flip(count, flips, random)
        for metric, value in values.items():
            gain = value[:, None] - value[None, :]  # [places of A, places of B]
            mean = float((count * gain).sum() / n)
            low, high = np.quantile(drawn @ gain.ravel() / n, (0.025, 0.975))
            extreme = np.abs(flipped @ gain[np.triu_indices(PLACES, 1)] / n) >= abs(mean) - 1e-12  # equal, but for rounding
            p = float((1 + extreme.sum()) / (1 + flips))
            wins, losses = int(count[gain > 0].sum()), int(count[gain < 0].sum())
            differences.append(Difference(seen, targets, metric, n, mean, float(low), float(high), p, wins, losses))
    return differences


def _flip(count: np.ndarray, flips: int, random: np.random.Generator) -> np.ndarray:
    """[flips, pairs i < j] users with ranks (i, j) minus users with (j, i), after swapping A and B for each user with probability 1/2.

    To flip the sign of a user's difference is to swap the user's two ranks, so of the m users with the places {i, j} a binomial number
    comes to lie at (i, j) and the others at (j, i).
    """
    users = (count + count.T)[np.triu_indices(len(count), 1)]
    return 2 * random.binomial(users, 0.5, size=(flips, len(users))) - users


def to_json(differences: list[Difference]) -> list[dict[str, Any]]:
    """The differences, ready for `json.dumps`."""
    return [asdict(difference) for difference in differences]


def text(differences: list[Difference], names: tuple[str, str] = ("A", "B")) -> str:
    """The differences as monospaced text, protocol by protocol."""
    first, second = names
    lines = [f"{first} minus {second}: mean difference over users, 95 % interval, two-sided p, users for whom each is better"]
    protocol = None
    for d in differences:
        if (d.seen, d.targets) != protocol:
            protocol = (d.seen, d.targets)
            lines += ["", f"{d.seen}, {d.targets}: {d.n:,} users"]
        line = f"{d.metric:9}  {d.mean:+.4f}  [{d.low:+.4f}, {d.high:+.4f}]  p = {d.p:.4f}"
        lines.append(f"{line}  {first} {d.wins:,}, {second} {d.losses:,}")
    return "\n".join(lines) + "\n"
