"""M2-BERT on this machine's Python modules: a sentence finds the module, thousands of words long, whose documentation it was taken from. Needs no download.

    jaxrec train experiments/m2_python_api.py && jaxrec eval experiments/m2_python_api.py

Paper (arXiv 2402.07440): 80 million parameters, pretrained on masked language, then trained on LoCoV1's unpublished training sets: nDCG@10 of 86.9 for 8k
tokens over LoCoV1's twelve tasks, BM25 79.9 (its 94.7 for 32k tokens is not the mean of its own table of tasks, which is 91.1). Here a small model
learns from scratch, from 4,800 queries, with InfoNCE over the batch beside the paper's loss. Ours: see docs/results.md.
"""

from jaxrec.data.builders.python_module_docs import PythonModules
from jaxrec.data.passages import Passages
from jaxrec.data.tokenizers import WordPiece
from jaxrec.evals.document_retrieval import DocumentRetrieval
from jaxrec.experiment import Experiment
from jaxrec.methods.encoders.m2_bert import M2BERT
from jaxrec.optimizer import Adam

source = PythonModules()

experiment = Experiment(
    method=M2BERT(length=1024, dim=64, layers=2, hidden=128, filter_width=32, dropout=0.0, loss_name="mixed"),
    data=Passages(source, WordPiece(source, size=8192), batch=32, query_length=32, document_length=1024),
    steps=600,
    optimizer=Adam(peak=2e-3, warmup=0.1, decay="linear", clip=1.0),
    evals=(DocumentRetrieval(),),
    log_every=50,
    eval_every=200,
    smoke={"method.length": 16, "method.layers": 1, "method.dim": 32, "method.hidden": 64, "method.filter_width": 8},
)
