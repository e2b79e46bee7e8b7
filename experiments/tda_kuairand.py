"""TDA in a SASRec over histories of several hundred videos (KuaiRand-1K).

    jaxrec train experiments/tda_kuairand.py && jaxrec eval experiments/tda_kuairand.py
    jaxrec train experiments/tda_kuairand.py --sweep method.attention.weights=threshold_differential,softmax,differential,rectified

The paper (arXiv 2601.12145) measures language models only; this asks whether a threshold keeps an interest of 300 videos ago alive. Rotary positions, and heads
of width 32 whose gate stays below one for every length of history (beta 1: 8.9 million events).
"""

from jaxrec.data.builders.kuairand import KuaiRand
from jaxrec.data.sequences import Sequences
from jaxrec.evals.validation import NextItemRetrieval
from jaxrec.experiment import Experiment
from jaxrec.methods.sequential.sasrec import SASRec
from jaxrec.nn.attention import AttentionKind

experiment = Experiment(
    method=SASRec(dim=64, heads=2, dropout=0.3, negatives=2048, attention=AttentionKind(weights="threshold_differential", positions="rotary")),
    data=Sequences(KuaiRand(), length=512, batch=8),
    steps=8000,
    evals=(NextItemRetrieval(users=1000),),
    eval_every=1000,
    save_every=1000,
    smoke={"data.length": 32},
)
