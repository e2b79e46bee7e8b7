"""EnsRec on Amazon Beauty: the models of sasrec_id_beauty and sasrec_text_beauty as they are, their cosines added.

    jaxrec train experiments/ensrec_beauty.py && jaxrec eval experiments/ensrec_beauty.py

Nothing is trained but the two members, each on first use. Published, test Recall@10 / NDCG@10: .0980 / .0565 (Collins et al. 2025).
Ours: see docs/results.md.
"""

from pathlib import Path

from jaxrec.evals.validation import NextItemRetrieval
from jaxrec.experiment import Experiment, load
from jaxrec.methods.sequential.ensrec import EnsRec
from jaxrec.stages.runs import Trained

members = {name: load(Path(__file__).with_name(f"sasrec_{name}_beauty.py")) for name in ("id", "text")}

experiment = Experiment(
    method=EnsRec(tuple(member.method for member in members.values()), names=tuple(members)),  # type: ignore[arg-type]
    data=members["text"].data,
    steps=0,
    evals=(NextItemRetrieval(),),
    init_from={name: Trained(member) for name, member in members.items()},
)
