"""HSTU on Amazon Beauty, whose file has no times: positions only.

    jaxrec train experiments/hstu_beauty.py && jaxrec eval experiments/hstu_beauty.py

Published, test Recall@10 / NDCG@10: .0788 / .0439 (Tikhonovich et al. 2025).
"""

from jaxrec.data.builders.amazon_p5 import AmazonP5
from jaxrec.data.sequences import Sequences
from jaxrec.evals.validation import NextItemRetrieval
from jaxrec.experiment import Experiment
from jaxrec.methods.sequential.hstu import HSTU

experiment = Experiment(
    method=HSTU(dim=64, dropout=0.5, negatives=512),
    data=Sequences(AmazonP5("beauty"), batch=32),
    steps=5000,
    evals=(NextItemRetrieval(),),
    eval_every=250,
    save_every=1000,
)
