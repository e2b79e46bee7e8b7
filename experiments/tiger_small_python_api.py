"""TIGER, encoder-decoder, on the calls in this machine's Python code: a size that two CPU cores train, on data that needs no download.

jaxrec train experiments/tiger_small_python_api.py && jaxrec eval experiments/tiger_small_python_api.py
"""

from jaxrec.data.builders.python_api import PythonApi
from jaxrec.data.sequences import Sequences
from jaxrec.evals.validation import NextItemRetrieval
from jaxrec.experiment import Experiment
from jaxrec.methods.generative.tiger import TIGER
from jaxrec.optimizer import Adam
from jaxrec.stages.embeddings import TextEmbeddings
from jaxrec.stages.quantizers import ResidualKMeans
from jaxrec.stages.semantic_ids import SemanticIds
from jaxrec.stages.sid_trie import SidTrie
from jaxrec.stages.text_encoders import TfidfSvd

SOURCE = PythonApi()
SIDS = SemanticIds(TextEmbeddings(SOURCE, TfidfSvd(dim=256)), ResidualKMeans(levels=3, codes=256))

experiment = Experiment(
    method=TIGER(dim=64, layers=2, heads=2, head=32, hidden=256, dropout=0.1),
    data=Sequences(SOURCE, batch=16, length=20, row=32, form="last", stride=1, segments=8, columns=(SidTrie(SIDS),)),
    optimizer=Adam(peak=2e-3, decay="cosine", final=0.05),
    steps=3000,
    evals=(NextItemRetrieval(users=1000),),
    eval_every=1000,
    save_every=500,
    smoke={"method.dim": 16, "method.layers": 1, "method.heads": 2, "method.head": 8, "method.hidden": 32, "method.beams": 10},
)
