"""Hydra on this machine's Python code: a docstring's first sentence finds its function, by adapters on a frozen language model. Needs no download.

    jaxrec train experiments/hydra_python_api.py && jaxrec eval experiments/hydra_python_api.py

The base starts at random and stays so, since there is no small pretrained one without a download: this shows what adapters and head alone can learn, not
what Hydra gains from a language model. With one, name its run or artifact: `init_from={"base": ...}`. Ours: see docs/results.md.
"""

from jaxrec.data.builders.python_docs import PythonDocs
from jaxrec.data.passages import Passages
from jaxrec.data.tokenizers import WordPiece
from jaxrec.evals.document_retrieval import DocumentRetrieval
from jaxrec.experiment import Experiment
from jaxrec.method import FROM_DATA
from jaxrec.methods.late_interaction.hydra import Hydra
from jaxrec.nn.language_model import LanguageModel
from jaxrec.nn.lora import LoRA
from jaxrec.optimizer import Adam

source = PythonDocs()

experiment = Experiment(
    method=Hydra(
        encoder=LanguageModel(vocabulary=FROM_DATA, length=128, dim=128, layers=2, heads=4, hidden=256),
        lora=LoRA(rank=32, alpha=32.0),
        dim=64,
        temperature=0.5,
    ),
    data=Passages(source, WordPiece(source, size=8192), batch=64, query_length=24, document_length=96),
    steps=1000,
    optimizer=Adam(peak=3e-3, warmup=0.1, decay="linear"),
    evals=(DocumentRetrieval(queries=300, documents=2000),),
    log_every=50,
    eval_every=500,
)
