"""eSASRec on Amazon Beauty.

    jaxrec train experiments/esasrec_beauty.py && jaxrec eval experiments/esasrec_beauty.py

Published, test Recall@10 / NDCG@10: .0928 / .0523 (seen and cold items removed; Tikhonovich et al. 2025).
"""

from jaxrec.data.builders.amazon_p5 import AmazonP5
from jaxrec.data.sequences import Sequences
from jaxrec.evals.validation import NextItemRetrieval
from jaxrec.experiment import Experiment
from jaxrec.methods.sequential.esasrec import ESASRec

experiment = Experiment(
    method=ESASRec(dim=64, dropout=0.5, negatives=512),
    data=Sequences(AmazonP5("beauty"), batch=32),
    steps=5000,
    evals=(NextItemRetrieval(),),
    eval_every=250,
    save_every=1000,
)
