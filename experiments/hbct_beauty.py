"""HBCT on Amazon Beauty: a SASRec of width 64 takes over the index of a smaller one of width 32 that was trained for a quarter of the usual steps.

    jaxrec train experiments/hbct_beauty.py && jaxrec eval experiments/hbct_beauty.py

The old model is trained on first use. Without compatibility: --method.entail 0 --method.align 0. The paper has no numbers on this data (its body was
not available to us; it is about images). Ours: see docs/results.md.
"""

from jaxrec.data.builders.amazon_p5 import AmazonP5
from jaxrec.data.sequences import Sequences
from jaxrec.evals.upgrade import UpgradeRetrieval
from jaxrec.evals.validation import NextItemRetrieval
from jaxrec.experiment import Experiment
from jaxrec.methods.sequential.hbct import HBCT
from jaxrec.methods.sequential.sasrec import SASRec
from jaxrec.stages.runs import Trained

data = Sequences(AmazonP5("beauty"), batch=32)
old = Experiment(SASRec(dim=32, dropout=0.5, negatives=512), data, steps=1650, save_every=0, name="sasrec_small_beauty")

experiment = Experiment(
    method=HBCT(old=old.method, new=SASRec(dim=64, dropout=0.5, negatives=512)),  # type: ignore[arg-type]
    data=data,
    steps=3300,
    evals=(NextItemRetrieval(), UpgradeRetrieval()),
    init_from={"old": Trained(old)},
    eval_every=660,
    save_every=1000,
)
