"""A hidden key in Tiny Shakespeare: which kinds of attention find it, at the training length and in longer rows.

    jaxrec train experiments/tda_passkey.py && jaxrec eval experiments/tda_passkey.py
    python -m benchmarks.long_context --task passkey --kinds softmax threshold_differential

Three symbols out of ten are hidden anywhere in a row of 128 characters and asked for at its end; only they are learned. A guess gives one key in a thousand.
Published (arXiv 2601.12145; 162M parameters after pretraining on text, at 4,096 tokens): threshold differential attention 15 %, softmax 6 %. That is another
task than this one, in which nothing else is learned. Ours: docs/results.md.
"""

from jaxrec.data.builders.tiny_shakespeare import TinyShakespeare
from jaxrec.data.passkeys import Passkeys
from jaxrec.data.text import Tokens
from jaxrec.evals.passkey import PasskeyRecall
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
            layers=2,
            heads=4,
            hidden=344,
            length=1024,
            attention=AttentionKind(weights="threshold_differential", positions="rotary", beta=0.5),
            tied=True,
        )
    ),
    data=Passkeys(Tokens(TinyShakespeare()), length=128),
    steps=250,
    optimizer=Adam(peak=2e-3, warmup=0.05, decay="cosine"),
    evals=(PasskeyRecall(),),
    eval_every=50,
    save_every=50,
    smoke={"method.model.layers": 1, "method.model.dim": 64},
)
