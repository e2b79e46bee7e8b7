"""SASRec on Amazon Beauty with the items' categories as a side feature.

jaxrec train experiments/sasrec_beauty_categories.py && jaxrec eval experiments/sasrec_beauty_categories.py
jaxrec compare runs/sasrec_beauty_categories runs/sasrec_beauty
"""

from jaxrec.data.builders.amazon_p5 import AmazonP5
from jaxrec.data.sequences import Sequences
from jaxrec.evals.validation import NextItemRetrieval
from jaxrec.experiment import Experiment
from jaxrec.methods.sequential.sasrec import SASRec
from jaxrec.nn.features import Feature

experiment = Experiment(
    method=SASRec(dim=64, dropout=0.5, negatives=512, features=(Feature("categories"),)),
    data=Sequences(AmazonP5("beauty"), batch=32),
    steps=6600,
    evals=(NextItemRetrieval(),),
    eval_every=330,
    save_every=1000,
)
