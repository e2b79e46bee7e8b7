"""SASRec that knows the calls in this machine's Python code by their docstrings only: the text member of the demo's EnsRec.

jaxrec train experiments/sasrec_text_python_api.py && jaxrec eval experiments/sasrec_text_python_api.py
"""

from jaxrec.data.builders.python_api import PythonApi
from jaxrec.data.sequences import Sequences
from jaxrec.evals.validation import NextItemRetrieval
from jaxrec.experiment import Experiment
from jaxrec.methods.sequential.sasrec import SASRec
from jaxrec.nn.features import Feature
from jaxrec.stages.embeddings import TextEmbeddings
from jaxrec.stages.text_encoders import TfidfSvd

source = PythonApi()

experiment = Experiment(
    method=SASRec(dim=64, dropout=0.3, negatives=512, temperature=0.1, ids=False, features=(Feature("text", kind="vector"),)),
    data=Sequences(source, batch=32, length=64, columns=(TextEmbeddings(source, TfidfSvd(dim=256)),)),
    steps=1000,
    evals=(NextItemRetrieval(),),
    log_every=125,
    eval_every=250,
    save_every=1000,
)
