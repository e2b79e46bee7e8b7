"""ColBERTer on SciFact (BEIR): MiniLM fine-tuned on the 919 judged claims of the training split, with a vector per word that is no stop-word.

    jaxrec train experiments/colberter_scifact.py && jaxrec eval experiments/colberter_scifact.py

Starts from sentence-transformers/all-MiniLM-L6-v2: a hub id, or a folder of that name below JAXREC_MODEL_DIR. The log's "words / pieces" and
"stored / words" say which share of ColBERT's vectors is left. Published, on MS MARCO with a teacher's scores: MRR@10 .387 with 30.9 vectors of width
32 in place of a passage's 77 pieces (Hofstätter et al. 2022, arXiv 2203.13088, table 2); there is no number for SciFact. Ours: see docs/results.md.
"""

from jaxrec.data.builders.beir import Beir
from jaxrec.data.passages import Passages
from jaxrec.evals.document_retrieval import DocumentRetrieval
from jaxrec.experiment import Experiment
from jaxrec.methods.late_interaction.colberter import ColBERTer
from jaxrec.nn.bert import BERT
from jaxrec.optimizer import Adam
from jaxrec.stages.pretrained import PretrainedBert, PretrainedTokenizer

MODEL = "sentence-transformers/all-MiniLM-L6-v2"

experiment = Experiment(
    method=ColBERTer(encoder=BERT(dim=384, layers=6, heads=12, hidden=1536), dim=32, whole=128),
    data=Passages(Beir("scifact"), PretrainedTokenizer(MODEL), batch=16, query_length=48, document_length=180),
    init_from={"bert": PretrainedBert(MODEL)},
    steps=300,
    optimizer=Adam(peak=5e-5, warmup=0.1, decay="linear"),
    evals=(DocumentRetrieval(split="test"),),
    log_every=10,
    smoke={"method.encoder.layers": 1, "method.encoder.dim": 48, "method.encoder.hidden": 96},
)
