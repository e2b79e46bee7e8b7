"""The ID member of EnsRec on Amazon Beauty: SASRec scored by cosines.

    jaxrec train experiments/sasrec_id_beauty.py && jaxrec eval experiments/sasrec_id_beauty.py

Published, test Recall@10 / NDCG@10: .0821 / .0489 with a T5 encoder of d = 128 and softmax over the whole catalogue (Collins et al. 2025).
Ours, smaller and with sampled softmax, so that two CPU cores suffice: see docs/results.md.
"""

from jaxrec.data.builders.amazon_p5 import AmazonP5
from jaxrec.data.sequences import Sequences
from jaxrec.evals.validation import NextItemRetrieval
from jaxrec.experiment import Experiment
from jaxrec.methods.sequential.sasrec import SASRec

experiment = Experiment(
    method=SASRec(dim=64, dropout=0.5, negatives=512, temperature=0.1),
    data=Sequences(AmazonP5("beauty"), batch=32),
    steps=6600,
    evals=(NextItemRetrieval(),),
    eval_every=330,
    save_every=1000,
)
