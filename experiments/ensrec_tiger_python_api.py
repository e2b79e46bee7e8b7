"""EnsRec with TIGER on the calls in this machine's Python code: tiger_python_api and ensrec_python_api as they are, the places of their best items fused.

jaxrec train experiments/ensrec_tiger_python_api.py && jaxrec eval experiments/ensrec_tiger_python_api.py
"""

import dataclasses
from pathlib import Path

from jaxrec.evals.validation import NextItemRetrieval
from jaxrec.experiment import Experiment, load
from jaxrec.methods.generative.candidate_ensemble import CandidateEnsemble
from jaxrec.stages.runs import Trained

tiger, ensrec = (load(Path(__file__).with_name(f"{name}_python_api.py")) for name in ("tiger", "ensrec"))

experiment = Experiment(
    method=CandidateEnsemble(tiger.method, ensrec.method, recent=tiger.data.length),  # type: ignore[arg-type]
    data=dataclasses.replace(ensrec.data, columns=(*ensrec.data.columns, *tiger.data.columns)),  # type: ignore[attr-defined]
    steps=0,
    evals=(NextItemRetrieval(users=500),),
    init_from={"generator": Trained(tiger), **{f"encoder.{name}": source for name, source in ensrec.init_from.items()}},
)
