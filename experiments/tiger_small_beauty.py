"""TIGER on Amazon Beauty at a size that two CPU cores train: a width of 64 instead of 128, two layers instead of four.

    jaxrec train experiments/tiger_small_beauty.py && jaxrec eval experiments/tiger_small_beauty.py

Published, test Recall@10 / NDCG@10, of the full size: .0648 / .0384 (Rajput et al. 2023).
"""

from pathlib import Path

from jaxrec.experiment import load, override

experiment = override(
    load(Path(__file__).with_name("tiger_beauty.py")),
    {
        "method.dim": 64,
        "method.layers": 2,
        "method.heads": 2,
        "method.head": 32,
        "method.hidden": 256,
        "method.dropout": 0.1,
        "steps": 20_000,
        "eval_every": 2000,
    },
)
