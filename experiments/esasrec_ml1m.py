"""eSASRec on MovieLens 1M.

    jaxrec train experiments/esasrec_ml1m.py && jaxrec eval experiments/esasrec_ml1m.py

Published, test Recall@10 / NDCG@10: .3133 / .1772 (seen and cold items removed; Tikhonovich et al. 2025).
"""

from jaxrec.data.builders.movielens import MovieLens
from jaxrec.data.sequences import Sequences
from jaxrec.evals.validation import NextItemRetrieval
from jaxrec.experiment import Experiment
from jaxrec.methods.sequential.esasrec import ESASRec

experiment = Experiment(
    method=ESASRec(dim=64, dropout=0.2, negatives=256),
    data=Sequences(MovieLens("1m"), batch=64, length=200, row=256, stride=200),
    steps=8000,
    evals=(NextItemRetrieval(),),
    eval_every=500,
    save_every=1000,
)
