"""BERT4Rec with sampled softmax on MovieLens 1M.

jaxrec train experiments/bert4rec_ml1m.py && jaxrec eval experiments/bert4rec_ml1m.py
"""

from jaxrec.data.builders.movielens import MovieLens
from jaxrec.data.sequences import Sequences
from jaxrec.evals.validation import NextItemRetrieval
from jaxrec.experiment import Experiment
from jaxrec.methods.sequential.bert4rec import BERT4Rec

experiment = Experiment(
    method=BERT4Rec(dim=64, dropout=0.2, negatives=256),
    data=Sequences(MovieLens("1m"), batch=64, length=200, row=256, stride=200),
    steps=8000,
    evals=(NextItemRetrieval(),),
    eval_every=500,
    save_every=1000,
)
