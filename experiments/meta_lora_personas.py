"""Meta-LoRA on personas: a small BERT retrained on ten groups of speakers at once, with an adapter for each, so that later groups find it a low rank away.

    jaxrec train experiments/meta_lora_personas.py && jaxrec eval experiments/meta_lora_personas.py
    jaxrec train experiments/meta_lora_personas.py --workdir runs/standard_personas method.lora:none    # standard retraining
    python -m benchmarks.meta_lora_personas                                                            # both, then what comes of it

Which of twenty sentences does a speaker of this group say to that partner? The paper (arXiv 2410.22264) retrains RoBERTa-base on ten personas of ConvAI2
for ten epochs. There are no dialogues here, and minutes of a CPU, so a network of 0.3M parameters starts at random and learns little more than which words
a group prefers; give another by `--method.encoder` and `init_from`. What it is retrained for: experiments/meta_lora_personas_adapt.py. Ours: docs/results.md.
"""

from jaxrec.data.builders.msc_personas import MscPersonas
from jaxrec.data.task_pairs import TaskPairs, TaskTexts
from jaxrec.data.tokenizers import WordPiece
from jaxrec.evals.task_choice import CandidateChoice
from jaxrec.experiment import Experiment
from jaxrec.method import FROM_DATA
from jaxrec.methods.adaptation.meta_lora import MetaLoRA
from jaxrec.nn.bert import BERT
from jaxrec.optimizer import Adam

source = MscPersonas("retrain")

experiment = Experiment(
    method=MetaLoRA(BERT(vocabulary=FROM_DATA, length=24, dim=64, layers=1, heads=4, hidden=256, dropout=0.0)),
    data=TaskPairs(source, WordPiece(TaskTexts(source), size=4096), length=24, batch=64, negatives=3),
    steps=800,
    optimizer=Adam(peak=3e-3, warmup=0.1, decay="linear"),
    evals=(CandidateChoice(questions=20),),
    save_every=100,
)
