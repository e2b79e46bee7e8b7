"""SASRec on the calls in this machine's Python code: the demo's model.

jaxrec train experiments/sasrec_python_api.py && jaxrec eval experiments/sasrec_python_api.py
"""

from jaxrec.data.builders.python_api import PythonApi
from jaxrec.data.sequences import Sequences
from jaxrec.evals.validation import NextItemRetrieval
from jaxrec.experiment import Experiment
from jaxrec.methods.sequential.sasrec import SASRec

experiment = Experiment(
    method=SASRec(dim=64, dropout=0.3, negatives=512),
    data=Sequences(PythonApi(), batch=32, length=64),
    steps=3000,
    evals=(NextItemRetrieval(),),
    log_every=125,
    eval_every=250,
    save_every=1000,
)
