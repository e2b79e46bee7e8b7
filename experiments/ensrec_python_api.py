"""EnsRec on the calls in this machine's Python code: the models of sasrec_python_api and sasrec_text_python_api as they are, their cosines added.

jaxrec train experiments/ensrec_python_api.py && jaxrec eval experiments/ensrec_python_api.py
"""

from pathlib import Path

from jaxrec.evals.validation import NextItemRetrieval
from jaxrec.experiment import Experiment, load
from jaxrec.methods.sequential.ensrec import EnsRec
from jaxrec.stages.runs import Trained

members = {"id": load(Path(__file__).with_name("sasrec_python_api.py")), "text": load(Path(__file__).with_name("sasrec_text_python_api.py"))}

experiment = Experiment(
    method=EnsRec(tuple(member.method for member in members.values()), names=tuple(members)),  # type: ignore[arg-type]
    data=members["text"].data,
    steps=0,
    evals=(NextItemRetrieval(),),
    init_from={name: Trained(member) for name, member in members.items()},
)
