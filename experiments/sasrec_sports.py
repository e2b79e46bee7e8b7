"""SASRec with sampled softmax on Amazon Sports and Outdoors.

    jaxrec train experiments/sasrec_sports.py && jaxrec eval experiments/sasrec_sports.py

Published, test Recall@10 / NDCG@10: .0569 / .0323 (SASRec with sampled softmax, seen and cold items removed; Tikhonovich et al. 2025).
"""

from jaxrec.data.builders.amazon_p5 import AmazonP5
from jaxrec.data.sequences import Sequences
from jaxrec.evals.validation import NextItemRetrieval
from jaxrec.experiment import Experiment
from jaxrec.methods.sequential.sasrec import SASRec

experiment = Experiment(
    method=SASRec(dim=64, dropout=0.5, negatives=512),
    data=Sequences(AmazonP5("sports"), batch=48),
    steps=6600,
    evals=(NextItemRetrieval(),),
    eval_every=330,
    save_every=1000,
)
