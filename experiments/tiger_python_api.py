"""TIGER, decoder only, on the calls in this machine's Python code: docstrings -> text vectors -> semantic IDs -> the next call's ID, code by code.

jaxrec train experiments/tiger_python_api.py && jaxrec eval experiments/tiger_python_api.py
"""

from jaxrec.data.builders.python_api import PythonApi
from jaxrec.data.sequences import Sequences
from jaxrec.evals.validation import NextItemRetrieval
from jaxrec.experiment import Experiment
from jaxrec.methods.generative.tiger_decoder import TIGERDecoder
from jaxrec.optimizer import Adam
from jaxrec.stages.embeddings import TextEmbeddings
from jaxrec.stages.quantizers import ResidualKMeans
from jaxrec.stages.semantic_ids import SemanticIds
from jaxrec.stages.sid_trie import SidTrie
from jaxrec.stages.text_encoders import TfidfSvd

source = PythonApi()
sids = SemanticIds(TextEmbeddings(source, TfidfSvd(dim=256)), ResidualKMeans(levels=3, codes=128))

experiment = Experiment(
    method=TIGERDecoder(dim=64, layers=2, heads=2, head=32, hidden=256, dropout=0.1, beams=10),
    data=Sequences(source, batch=32, length=30, row=32, stride=30, form="stream", segments=8, columns=(SidTrie(sids),)),
    optimizer=Adam(peak=2e-3, decay="cosine", final=0.05),
    steps=700,
    evals=(NextItemRetrieval(users=500),),
    log_every=100,
    eval_every=350,
    save_every=500,
    smoke={"method.dim": 16, "method.layers": 1, "method.heads": 2, "method.head": 8, "method.hidden": 32},
)
