"""SASRec with sampled softmax on Amazon Beauty.

    jaxrec train experiments/sasrec_beauty.py && jaxrec eval experiments/sasrec_beauty.py

Published, test Recall@10 / NDCG@10: .0605 / .0318 with BCE as usually quoted (seen items kept); .0921 / .0531 with sampled softmax
(seen and cold items removed; Tikhonovich et al. 2025). Ours: see docs/results.md.
"""

from jaxrec.data.builders.amazon_p5 import AmazonP5
from jaxrec.data.sequences import Sequences
from jaxrec.evals.validation import NextItemRetrieval
from jaxrec.experiment import Experiment
from jaxrec.methods.sequential.sasrec import SASRec
from jaxrec.optimizer import Adam

experiment = Experiment(
    method=SASRec(dim=64, dropout=0.5, negatives=512, stddev=0.02),
    data=Sequences(AmazonP5("beauty"), batch=32),
    steps=6600,
    optimizer=Adam(peak=1.5e-3, decay="cosine"),
    evals=(NextItemRetrieval(),),
    eval_every=330,
    save_every=1000,
)
