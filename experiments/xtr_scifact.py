"""XTR on SciFact (BEIR): MiniLM fine-tuned by XTR's objective on the 919 judged claims of the training split, searched by exact MaxSim.

    jaxrec train experiments/xtr_scifact.py && jaxrec eval experiments/xtr_scifact.py

Starts from sentence-transformers/all-MiniLM-L6-v2: a hub id, or a folder of that name below JAXREC_MODEL_DIR. Published nDCG@10 on the 300 test
queries: XTR-base, a T5 trained on MS MARCO and searched by WARP, .705 (Scheerer et al. 2025, arXiv 2501.17788). Ours: see docs/results.md.
"""

from jaxrec.data.builders.beir import Beir
from jaxrec.data.passages import Passages
from jaxrec.evals.document_retrieval import DocumentRetrieval
from jaxrec.experiment import Experiment
from jaxrec.methods.late_interaction.xtr import XTR
from jaxrec.nn.bert import BERT
from jaxrec.optimizer import Adam
from jaxrec.stages.pretrained import PretrainedBert, PretrainedTokenizer

MODEL = "sentence-transformers/all-MiniLM-L6-v2"

experiment = Experiment(
    method=XTR(encoder=BERT(dim=384, layers=6, heads=12, hidden=1536), dim=128, retrieved=320),
    data=Passages(Beir("scifact"), PretrainedTokenizer(MODEL), batch=16, query_length=48, document_length=180),
    init_from={"bert": PretrainedBert(MODEL)},
    steps=300,
    optimizer=Adam(peak=5e-5, warmup=0.1, decay="linear"),
    evals=(DocumentRetrieval(split="test"),),
    log_every=10,
    smoke={"method.encoder.layers": 1, "method.encoder.dim": 48, "method.encoder.hidden": 96},
)
