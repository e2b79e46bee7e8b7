"""BERT4Rec with sampled softmax on Amazon Beauty.

jaxrec train experiments/bert4rec_beauty.py && jaxrec eval experiments/bert4rec_beauty.py
"""

from jaxrec.data.builders.amazon_p5 import AmazonP5
from jaxrec.data.sequences import Sequences
from jaxrec.evals.validation import NextItemRetrieval
from jaxrec.experiment import Experiment
from jaxrec.methods.sequential.bert4rec import BERT4Rec

experiment = Experiment(
    method=BERT4Rec(dim=64, dropout=0.3, negatives=512),
    data=Sequences(AmazonP5("beauty"), batch=32),
    steps=8000,
    evals=(NextItemRetrieval(),),
    eval_every=400,
    save_every=1000,
)
