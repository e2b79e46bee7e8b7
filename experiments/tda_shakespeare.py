"""A character language model with threshold differential attention (TDA) on Tiny Shakespeare, and its baselines on the same budget.

    jaxrec train experiments/tda_shakespeare.py && jaxrec eval experiments/tda_shakespeare.py
    jaxrec train experiments/tda_shakespeare.py --sweep method.model.attention.weights=threshold_differential,softmax,differential,rectified,threshold

Published (arXiv 2601.12145; 162M parameters, 10B tokens of FineWeb-Edu), validation loss and share of exact zeros: softmax 3.1196 / 0,
TDA 3.1190 / 99 %, ReLA 3.1657 / 94 %, Differential 3.1941 / 0, entmax 3.1941 / 43 %. The paper's beta is 1; with heads as narrow
as these most rows would then pass no key. Here 0.8M parameters read 1.6M characters. Ours: see docs/results.md.
"""

from jaxrec.data.builders.tiny_shakespeare import TinyShakespeare
from jaxrec.data.text import TextRows, Tokens
from jaxrec.evals.language_modelling import HeldOutText
from jaxrec.experiment import Experiment
from jaxrec.method import FROM_DATA
from jaxrec.methods.language.causal_lm import CausalLM
from jaxrec.nn.attention import AttentionKind
from jaxrec.nn.language_model import LanguageModel
from jaxrec.optimizer import Adam

experiment = Experiment(
    method=CausalLM(
        LanguageModel(
            vocabulary=FROM_DATA,
            dim=128,
            layers=4,
            heads=4,
            hidden=344,
            length=1024,
            attention=AttentionKind(weights="threshold_differential", positions="rotary", beta=0.5),
            tied=True,
        )
    ),
    data=TextRows(Tokens(TinyShakespeare()), length=128, stride=32, batch=16),
    steps=800,
    optimizer=Adam(peak=2e-3, warmup=0.05, decay="cosine"),
    evals=(HeldOutText(),),
    eval_every=200,
    save_every=200,
    smoke={"method.model.layers": 1, "method.model.dim": 64, "data.length": 16},
)
