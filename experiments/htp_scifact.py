"""Hierarchical token prepending on SciFact (BEIR), trained: a causal encoder whose early tokens see, through placeholders, what comes later in the abstract.

    jaxrec train experiments/htp_scifact.py && jaxrec eval experiments/htp_scifact.py

Paper (arXiv 2511.14868): no training at all, on Mistral-7B, Qwen2 and Gemma; that is `jaxrec embed MODEL`, and `python -m benchmarks.token_prepending MODEL`
compares the plans. No pretrained language model is needed here: it is experiments/last_token_scifact.py, from scratch, with placeholders in training and in
use. Both have the same parameters, so what differs is only who sees whom. Ours: docs/results.md.
"""

import dataclasses
from pathlib import Path

from jaxrec.experiment import load
from jaxrec.nn.token_prepending import TokenPrepending

plain = load(Path(__file__).with_name("last_token_scifact.py"))
plan = TokenPrepending("htp", start=1, exit=3, output_layer=4, max_blocks=8)

experiment = dataclasses.replace(plain, method=dataclasses.replace(plain.method, plan=plan, block=32))  # type: ignore[type-var]
