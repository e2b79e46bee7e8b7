"""TIGER on Amazon Beauty: text vectors -> semantic IDs -> encoder-decoder, each built on first use.

    jaxrec train experiments/tiger_beauty.py && jaxrec eval experiments/tiger_beauty.py

Published, test Recall@10 / NDCG@10: .0648 / .0384 (Rajput et al. 2023); with GRID's configuration .0564 / .0288, reproductions .0634 / .0338. These are
the published sizes; an epoch of them is about 50 TFLOP, so they want an accelerator. On a CPU: experiments/tiger_small_beauty.py.
"""

from jaxrec.data.builders.amazon_p5 import AmazonP5
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

SOURCE = AmazonP5("beauty")
SIDS = SemanticIds(TextEmbeddings(SOURCE, TfidfSvd(dim=256)), ResidualKMeans(levels=3, codes=256))

experiment = Experiment(
    method=TIGER(dim=128, layers=4, heads=6, head=64, hidden=1024, dropout=0.15),
    data=Sequences(SOURCE, batch=32, length=20, row=32, form="last", stride=1, segments=8, columns=(SidTrie(SIDS),)),
    optimizer=Adam(peak=1e-3, weight_decay=1e-4),
    steps=60_000,
    evals=(NextItemRetrieval(users=2000),),
    eval_every=2000,
    save_every=1000,
    patience=10,
    smoke={"method.dim": 16, "method.layers": 1, "method.heads": 2, "method.head": 8, "method.hidden": 32, "method.beams": 10},
)
