"""Hierarchical token prepending on SciFact (BEIR), trained: a causal encoder whose early tokens see, through placeholders, what comes later in the abstract.

    jaxrec train experiments/htp_scifact.py && jaxrec eval experiments/htp_scifact.py
    jaxrec train experiments/htp_scifact.py --workdir runs/vanilla method.plan:none        # the same without placeholders

Paper (arXiv 2511.14868): no training at all, on Mistral-7B, Qwen2 and Gemma; that is `jaxrec embed MODEL`, and `python -m benchmarks.token_prepending MODEL`
compares the plans. Here no pretrained language model is needed: a small decoder learns from 919 pairs from scratch, placeholders included, and both runs
have the same parameters, so what differs is only who sees whom. Ours: docs/results.md.
"""

from jaxrec.data.builders.beir import Beir
from jaxrec.data.passages import Passages
from jaxrec.data.tokenizers import WordPiece
from jaxrec.evals.document_retrieval import DocumentRetrieval
from jaxrec.experiment import Experiment
from jaxrec.method import FROM_DATA
from jaxrec.methods.dense.last_token import LastToken
from jaxrec.nn.language_model import LanguageModel
from jaxrec.nn.token_prepending import TokenPrepending
from jaxrec.optimizer import Adam
from jaxrec.stages.hard_negatives import BM25Negatives

source = Beir("scifact")

experiment = Experiment(
    method=LastToken(
        encoder=LanguageModel(vocabulary=FROM_DATA, length=320, dim=128, layers=4, heads=4, hidden=256),
        pooling="mean",
        plan=TokenPrepending("htp", start=1, exit=3, output_layer=4, max_blocks=8),
        block=32,
    ),
    data=Passages(source, WordPiece(source, size=8192), batch=32, query_length=48, document_length=256, negatives=BM25Negatives(source), hard=1),
    steps=600,
    optimizer=Adam(peak=1e-3, warmup=0.1, decay="linear", clip=1.0),
    evals=(DocumentRetrieval(split="train", queries=50, documents=500),),
    log_every=50,
    smoke={"method.encoder.dim": 32, "method.encoder.hidden": 64},
)
