"""TIGER without an encoder on Amazon Beauty: one pass over a history trains every next item, so an epoch takes a fraction of the encoder-decoder's.

    jaxrec train experiments/tiger_decoder_beauty.py && jaxrec eval experiments/tiger_decoder_beauty.py

GRID reports decoder-only models as markedly worse than encoder-decoders, without a number for Beauty that we could verify.
"""

import dataclasses
from pathlib import Path

from jaxrec.experiment import load
from jaxrec.methods.generative.tiger_decoder import TIGERDecoder

tiger = load(Path(__file__).with_name("tiger_small_beauty.py"))
experiment = dataclasses.replace(
    tiger,
    method=TIGERDecoder(dim=64, layers=2, heads=2, head=32, hidden=256, dropout=0.2),
    data=dataclasses.replace(tiger.data, form="stream", stride=0, batch=64, row=32, segments=8),
    steps=6000,
    eval_every=500,
)
