"""ColBERT on this machine's Python code: the first sentence of a docstring finds the function it describes. Needs no download.

    jaxrec train experiments/colbert_python_api.py && jaxrec eval experiments/colbert_python_api.py

A small BERT learns from scratch. Ours: see docs/results.md.
"""

from jaxrec.data.builders.python_docs import PythonDocs
from jaxrec.data.passages import Passages
from jaxrec.data.tokenizers import WordPiece
from jaxrec.evals.document_retrieval import DocumentRetrieval
from jaxrec.experiment import Experiment
from jaxrec.method import FROM_DATA
from jaxrec.methods.late_interaction.colbert import ColBERT
from jaxrec.nn.bert import BERT
from jaxrec.optimizer import Adam

source = PythonDocs()

experiment = Experiment(
    method=ColBERT(encoder=BERT(vocabulary=FROM_DATA, length=128, dim=128, layers=2, heads=4, hidden=256, types=1), dim=64, temperature=0.5),
    data=Passages(source, WordPiece(source, size=8192), batch=64, query_length=24, document_length=96),
    steps=1000,
    optimizer=Adam(peak=1e-3, warmup=0.1, decay="linear"),
    evals=(DocumentRetrieval(queries=300, documents=2000),),
    log_every=50,
    eval_every=500,
)
