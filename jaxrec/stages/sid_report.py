"""What semantic IDs are like: how many items they tell apart, how evenly the codes are used, what items of a prefix share."""

from __future__ import annotations

import collections
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxrec.stages.semantic_ids import SidTable


def report(table: SidTable, embeddings: np.ndarray, titles: Sequence[str], reconstructed: Sequence[np.ndarray] = ()) -> dict[str, Any]:
    """Facts about the IDs, JSON-able.

    Args:
      table: the IDs.
      embeddings: [N + 1, E] that they were made from.
      titles: [N] of items 1..N.
      reconstructed: for l = 1..L [N, E], what the first l codes stand for (`SemanticIds.reconstructed`), if at hand.

    Returns:
      items; levels: for each l `used` codes, `perplexity` exp(-sum_w p_w log p_w), `unique` the share #(distinct prefixes of l codes) / #items, and
      `within` = sum |x - mean of its prefix|^2 / sum |x - mean|^2, the variance that the first l codes leave, and `relative_mse` = sum |x - x_l|^2 / the
      same, of what they stand for, or None; `shared`: items whose codes another item has too; `largest`: the codes, size and first titles of the largest
      group with equal codes.

    Raises:
      ValueError: the arrays are not of the table's items.
    """
    codes, vectors = np.asarray(table.semantic), np.asarray(embeddings[1:], np.float64)
    if not len(codes) == len(vectors) == len(titles):
        raise ValueError(f"the table has {len(codes)} items, the embeddings {len(vectors)} and the titles {len(titles)}; give those of the same catalogue")
    total = float(((vectors - vectors.mean(axis=0)) ** 2).sum())
    levels = []
    group, count = np.zeros(len(codes), np.int64), np.array([len(codes)])
    for level in range(codes.shape[1]):
        _, group, count = np.unique(codes[:, : level + 1], axis=0, return_inverse=True, return_counts=True)
        group = group.reshape(-1)
        share = np.unique(codes[:, level], return_counts=True)[1] / len(codes)
        levels.append(
            {
                "width": table.widths[level],
                "used": len(share),
                "perplexity": float(np.exp(-(share * np.log(share)).sum())),
                "unique": len(count) / len(codes),
                "within": _within(vectors, group, count) / total if total else 0.0,
                "relative_mse": float(((vectors - reconstructed[level]) ** 2).sum() / total) if len(reconstructed) and total else None,
            }
        )
    members = np.flatnonzero(group == np.argmax(count))
    return {
        "items": len(codes),
        "levels": levels,
        "shared": int(count[count > 1].sum()),
        "largest": {"codes": codes[members[0]].tolist(), "items": len(members), "titles": [titles[row] for row in members[:5]]},
    }


def text(facts: dict[str, Any]) -> str:
    """A report as a few aligned lines."""
    lines = [f"{facts['items']:,} items", "level   codes used  perplexity   distinct prefixes   variance left   error of the codes"]
    for number, level in enumerate(facts["levels"], 1):
        used = f"{level['used']} / {level['width']}"
        error = "" if level["relative_mse"] is None else f"{level['relative_mse']:>21.1%}"
        lines.append(f"{number:>5}{used:>13}{level['perplexity']:>12.1f}{level['unique']:>20.1%}{level['within']:>16.1%}{error}")
    largest = facts["largest"]
    lines.append(f"{facts['shared']:,} items share their codes with another; at most {largest['items']} have the same, {tuple(largest['codes'])}:")
    lines += [f"  {title}" for title in largest["titles"]]
    return "\n".join(lines)


def tree(table: SidTable, titles: Sequence[str], prefix: Sequence[int] = (), *, depth: int = 1, branches: int = 8, examples: int = 4) -> str:
    """The items of a prefix: the largest branches for `depth` more codes, each with its characteristic words and a few titles, indented."""
    everywhere = word_counts(titles)

    def lines(prefix: tuple[int, ...], depth: int) -> list[str]:
        found = table.items(prefix)
        indent = "  " * len(prefix)
        words = "  " + ", ".join(characteristic([titles[int(item) - 1] for item in found], everywhere, len(titles))) if prefix else ""
        head = f"{indent}{'-'.join(map(str, prefix)) or 'all'}: {len(found):,} items{words}"
        if depth == 0 or len(prefix) == len(table.widths):
            return [head, *(f"{indent}  {titles[item - 1]}" for item in found[:examples])]
        code, count = np.unique(table.codes[found, len(prefix)], return_counts=True)
        largest = code[np.argsort(-count, kind="stable")].tolist()
        below = [line for branch in largest[:branches] for line in lines((*prefix, branch), depth - 1)]
        rest = len(largest) - branches
        return [head, *below, *([f"{indent}  and {rest} more {'branch' if rest == 1 else 'branches'}"] if rest > 0 else [])]

    return "\n".join(lines(tuple(prefix), depth))


def characteristic(titles: Sequence[str], everywhere: Mapping[str, int], total: int, words: int = 3) -> list[str]:
    """The words that tell these titles from all: largest n log(p / q), n of these titles with the word, p and q its shares here and in all.

    Args:
      titles: of some items.
      everywhere: `word_counts` of all titles.
      total: how many titles that are.
      words: how many to give.
    """
    gain = {word: n * math.log(n / len(titles) / (everywhere[word] / total)) for word, n in word_counts(titles).items()}
    return sorted(gain, key=lambda word: (-gain[word], word))[:words]


def word_counts(titles: Sequence[str]) -> collections.Counter[str]:
    """How many titles hold each word of at least three letters."""
    return collections.Counter(word for title in titles for word in set(re.findall(r"[^\W\d_]{3,}", title.lower())))


def plot(table: SidTable, path: Path, titles: Sequence[str] | None = None, *, labels: int = 44) -> None:
    """Draws the first two levels as a sunburst whose angles are numbers of items, and how the codes of each level are used; a PNG.

    Args:
      table: the IDs.
      path: of the PNG.
      titles: [N]; with them the largest first codes carry their characteristic words.
      labels: how many do.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # half a second to import, and only pictures need it
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 9), dpi=140, facecolor="white")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(2, 2, width_ratios=(2.1, 1), left=0.02, right=0.97, top=0.9, bottom=0.08, hspace=0.35, wspace=0.08)
    _sunburst(figure.add_subplot(grid[:, 0]), table, titles, labels)
    _use(figure.add_subplot(grid[0, 1]), table)
    _distinct(figure.add_subplot(grid[1, 1]), table)
    figure.suptitle(f"Semantic IDs of {table.size:,} items", fontsize=17, x=0.03, ha="left", weight="bold")
    figure.savefig(path)


def _within(vectors: np.ndarray, group: np.ndarray, count: np.ndarray) -> float:
    """Sum of squared distances to the mean of each group: sum |x|^2 - sum_g |sum of g|^2 / n_g, on vectors moved to mean zero."""
    centred = vectors - vectors.mean(axis=0)
    starts = np.cumsum(count) - count
    sums = np.add.reduceat(centred[np.argsort(group, kind="stable")], starts, axis=0)
    return max(float((centred**2).sum() - ((sums**2).sum(axis=1) / count).sum()), 0.0)


def _sunburst(axes: Any, table: SidTable, titles: Sequence[str] | None, labels: int) -> None:
    """Ring l holds the prefixes of l codes; a prefix lies outside of its parent, hue by the first code, larger ones first."""
    from matplotlib.collections import PatchCollection
    from matplotlib.colors import hsv_to_rgb
    from matplotlib.patches import Wedge

    codes = np.asarray(table.semantic)
    first, size = np.unique(codes[:, 0], return_counts=True)
    place = np.empty(table.widths[0], np.int64)
    place[first[np.argsort(-size, kind="stable")]] = np.arange(len(first))
    rings = min(2, codes.shape[1])
    wedges, colours, edges = [], [], []
    for ring in range(rings):
        prefix, count = np.unique(codes[:, : ring + 1], axis=0, return_counts=True)
        order = np.lexsort((-count, place[prefix[:, 0]]))
        ends = 90 - 360 * np.cumsum(count[order]) / len(codes)  # clockwise from noon
        for number, (row, end) in enumerate(zip(prefix[order], ends, strict=True)):
            hue = float(place[row[0]]) / len(first)
            shade = (0.62, 0.93) if ring == 0 else ((0.42, 0.97), (0.3, 0.99), (0.52, 0.94))[number % 3]
            wedges.append(Wedge((0, 0), 0.62 + 0.38 * ring, end, end + 360 * count[order[number]] / len(codes), width=0.32 if ring == 0 else 0.36))
            colours.append(hsv_to_rgb([hue, *shade]))
            edges.append(0.3 if ring == 0 else 0.0)  # thousands of white edges would be all that one sees
    axes.add_collection(PatchCollection(wedges, facecolors=colours, edgecolors="white", linewidths=edges))
    axes.text(0, 0, f"{len(first)} first codes\n{len(np.unique(codes[:, :rings], axis=0)):,} prefixes\nof {rings}", ha="center", va="center", fontsize=11)
    if titles is not None:
        _label(axes, table, titles, place, first, size, labels)
    axes.set(xlim=(-1.6, 1.6), ylim=(-1.16, 1.16), aspect="equal")
    axes.axis("off")


def _label(axes: Any, table: SidTable, titles: Sequence[str], place: np.ndarray, first: np.ndarray, size: np.ndarray, labels: int) -> None:
    """Characteristic words beside the largest first codes, where there is room for a line."""
    everywhere = word_counts(titles)
    last = {1: math.inf, -1: -math.inf}  # height of the last label on the right, which fills downwards, and on the left, which fills upwards
    before, drawn = 0, 0
    for rank in np.argsort(place[first]):
        middle = math.radians(90 - 360 * (before + size[rank] / 2) / table.size)
        before += size[rank]
        x, y = math.cos(middle), math.sin(middle)
        side = 1 if x >= 0 else -1
        if drawn == labels or (last[side] - 1.1 * y) * side < 0.075:
            continue
        words = " ".join(characteristic([titles[int(item) - 1] for item in table.items((int(first[rank]),))], everywhere, len(titles), 2))
        if not words:
            continue
        last[side], drawn = 1.1 * y, drawn + 1
        axes.plot([1.01 * x, 1.07 * x, 1.07 * x + 0.04 * side], [1.01 * y, 1.1 * y, 1.1 * y], color="0.6", linewidth=0.7)
        axes.text(1.07 * x + 0.055 * side, 1.1 * y, words, ha="left" if side > 0 else "right", va="center", fontsize=9, color="0.2")


def _use(axes: Any, table: SidTable) -> None:
    codes = np.asarray(table.semantic)
    shares = [np.unique(codes[:, level], return_counts=True)[1] / len(codes) for level in range(codes.shape[1])]
    places = np.arange(len(shares))
    axes.bar(places, table.widths[: len(shares)], width=0.62, color="0.93", label="codes")
    axes.bar(places, [len(share) for share in shares], width=0.62, color="#9ecae1", label="used")
    perplexity = [float(np.exp(-(share * np.log(share)).sum())) for share in shares]
    bars = axes.bar(places, perplexity, width=0.4, color="#2171b5", label="perplexity")
    axes.bar_label(bars, [f"{value:.0f}" for value in perplexity], padding=-15, color="white", weight="bold")
    axes.set_xticks(places, [f"level {place + 1}" for place in places])
    axes.set_title("how evenly codes are used", loc="left", fontsize=12)
    _bare(axes)
    axes.legend(frameon=False, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.1), fontsize=9)


def _distinct(axes: Any, table: SidTable) -> None:
    codes = np.asarray(table.codes[1:])
    unique = [len(np.unique(codes[:, : end + 1], axis=0)) / len(codes) for end in range(codes.shape[1])]
    places = np.arange(1, len(unique) + 1)
    bars = axes.bar(places, unique, width=0.62, color=["#fdae6b"] * table.semantic.shape[1] + ["#e6550d"])
    axes.bar_label(bars, [f"{value:.0%}" if value >= 0.01 else f"{value:.1%}" for value in unique], padding=2)
    axes.set_xticks(
        places,
        [f"{place} codes" if place > 1 else "1 code" for place in places[: table.semantic.shape[1]]] + ["with digit"] * (len(places) - table.semantic.shape[1]),
    )
    axes.set_ylim(0, 1.12)
    axes.set_title("distinct prefixes / items", loc="left", fontsize=12)
    _bare(axes)


def _bare(axes: Any) -> None:
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(left=False, bottom=False)
