"""Token reduction on one picture: what fewer tokens and fewer bytes of them cost in nDCG@10, by the reductions of `experiments.compress_scifact`.

    python -m benchmarks.token_reduction --workdir runs/search/colbert_scifact-seed0 [--experiment experiments/colbert_scifact.py] [--only NAME ...]

Writes a row each, and the picture of all rows of that experiment beside them. The workdir then also has the token vectors that
`benchmarks.multivector_index --vectors` reads.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.record import RESULTS, record
from experiments.compress_scifact import add_options, rated
from jaxrec.artifact import say


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    options = parser.parse_args()
    label = options.experiment.stem
    for name, row in rated(options.experiment, options.workdir, options.only):
        record("token_reduction", [{"name": f"{label}: {name}"} | row])  # one by one: an interrupted call has measured what it says it has
    rows = json.loads((RESULTS / "token_reduction.json").read_text())
    draw([row for row in rows if row["name"].partition(": ")[0] == label], RESULTS / f"token_reduction_{label}.png")


def draw(rows: list[dict], path: Path) -> None:
    """nDCG@10 over bytes of a document; what nothing cheaper is better than is joined by a line."""
    import matplotlib.pyplot as plt

    ordered = sorted(rows, key=lambda row: (row["bytes_per_document"], -row["ours"]))
    front, highest = [], -1.0
    for row in ordered:
        if row["ours"] > highest:
            front.append(row)
            highest = row["ours"]
    figure, axes = plt.subplots(figsize=(9, 5.5), layout="constrained")
    axes.plot([row["bytes_per_document"] for row in front], [row["ours"] for row in front], color="#2a7f7f", linewidth=1, zorder=1)
    for row in ordered:
        on_front = row in front
        axes.scatter(row["bytes_per_document"], row["ours"], s=28, color="#2a7f7f" if on_front else "#b0b0a8", zorder=2)
    axes.set(xscale="log", xlabel="bytes per document", ylabel="nDCG@10", title=rows[0]["name"].partition(": ")[0])
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(0.12, 0.06)
    write_labels(axes, {row["name"].partition(": ")[2]: (row["bytes_per_document"], row["ours"]) for row in [*front, *ordered]})
    figure.savefig(path, dpi=110)
    plt.close(figure)
    say(f"drew {path}")


def write_labels(axes: Any, labels: Mapping[str, tuple[float, float]]) -> None:
    """Writes each label as near to its point as it is free of points and of the labels before it."""
    from matplotlib.text import Text
    from matplotlib.transforms import Bbox

    axes.figure.draw_without_rendering()
    renderer = axes.figure.canvas.get_renderer()
    taken = [Bbox.from_bounds(x - 4, y - 4, 8, 8) for x, y in axes.transData.transform(list(labels.values()))]
    for name, point in labels.items():
        for number in range(240):
            turn, away = math.radians(30 * (number % 12) + 15), 8 + 4 * (number // 12)
            offset = away * math.cos(turn), away * math.sin(turn)
            text = axes.annotate(name, point, offset, textcoords="offset points", va="center", fontsize=8, color="#333")
            text.set(ha="left" if offset[0] > 0 else "right")
            text.update_positions(renderer)
            box = Text.get_window_extent(text, renderer)
            if axes.bbox.x0 < box.x0 and box.x1 < axes.bbox.x1 and not any(box.overlaps(other) for other in taken):
                break
            text.remove()
        else:
            raise ValueError(f"no place for the label {name!r} among {len(labels)}; draw fewer rows, or a larger picture")
        if away > 12:
            axes.annotate("", point, offset, textcoords="offset points", arrowprops={"arrowstyle": "-", "linewidth": 0.5, "color": "#999"})
        taken.append(box)


if __name__ == "__main__":
    main()
