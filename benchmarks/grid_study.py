"""GRID's study on a small scale: every variant of `experiments.grid_ablation`, recorded one by one.

    python -m benchmarks.grid_study --base tiger_small_python_api [--only base rvq rqvae] [--seeds 2] [--minutes 9]

An interrupted call goes on where it stopped. Rows are of the test split, by the labels of `benchmarks.accuracy`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.accuracy import results
from benchmarks.interrupt import add_minutes, interrupt_after
from benchmarks.record import record
from experiments.grid_ablation import BASES, ROOT, grid, rated, seeded
from jaxrec.experiment import load


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", choices=BASES, default=BASES[1])
    parser.add_argument("--only", nargs="+", metavar="NAME", help="variants; all of them unless given")
    parser.add_argument("--seeds", type=int, default=1)
    add_minutes(parser)
    options = parser.parse_args()
    interrupt_after(options.minutes)
    base = load(Path("experiments") / f"{options.base}.py")
    names = grid(base)
    if unknown := set(options.only or ()) - names.keys():
        parser.error(f"--only {' '.join(sorted(unknown))}: the variants are {', '.join(names)}")
    for name in options.only or names:
        rows = [rated(seeded(base, seed), name, ROOT / options.base) for seed in range(options.seeds)]
        found = results(f"{options.base} {name}", "TIGERDecoder" if name == "decoder_only" else "TIGER", rows, None)
        record("grid_study", [row | {"base": options.base, "variant": name, "steps": base.steps} for row in found])


if __name__ == "__main__":
    main()
