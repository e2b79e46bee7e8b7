"""LaSER on SciFact (BEIR), small and from scratch: a claim finds its abstract after two soft tokens, taught by the sentences that decide it.

    jaxrec train experiments/laser_scifact.py && jaxrec eval experiments/laser_scifact.py

Paper (arXiv 2603.01425): Qwen3-0.6B with adapters, 81,659 queries with reasoning by GPT-4o-mini; on BRIGHT nDCG@10 of 23.1, 18.3 without reasoning. Neither a
pretrained language model nor reasoning is needed here, and so nothing of that can be expected: a random decoder learns from 919 pairs, and its explicit
view reads, in place of a chain of thought, the evidence that annotators marked in the abstract (475 of 809 claims have some), which gives part of the
answer away. It shows that all parts train together, not what LaSER gains.

To start from a language model: `encoder=hyper_parameters("Qwen/Qwen3-0.6B")` and `lora=LoRA(rank=64, alpha=32.0)` in the method, `init_from={"base":
PretrainedLanguageModel("Qwen/Qwen3-0.6B")}`, and `LanguageModelTokenizer("Qwen/Qwen3-0.6B", query="Claim: ")` in place of `WordPiece`, all of
`jaxrec.stages.pretrained`; the paper's peak is 1e-4. The encoder without thoughts is `method.thoughts=1`, with teacher,
distillation and trajectory 0.
"""

from jaxrec.data.builders.scifact import SciFactEvidence
from jaxrec.data.reasoned_passages import ReasonedPassages
from jaxrec.data.tokenizers import WordPiece
from jaxrec.evals.document_retrieval import DocumentRetrieval
from jaxrec.experiment import Experiment
from jaxrec.method import FROM_DATA
from jaxrec.methods.dense.laser import LaSER
from jaxrec.nn.language_model import LanguageModel
from jaxrec.optimizer import Adam
from jaxrec.stages.hard_negatives import BM25Negatives

source = SciFactEvidence()

experiment = Experiment(
    method=LaSER(encoder=LanguageModel(vocabulary=FROM_DATA, length=192, dim=128, layers=2, heads=4, hidden=256)),
    data=ReasonedPassages(
        source,
        WordPiece(source, size=8192),
        batch=32,
        query_length=48,
        document_length=128,
        reasoning_length=160,
        negatives=BM25Negatives(source),
        hard=1,
    ),
    steps=600,
    optimizer=Adam(peak=1e-3, warmup=0.1, decay="linear", clip=1.0),
    evals=(DocumentRetrieval(split="train", queries=50, documents=500),),
    log_every=50,
    smoke={"method.encoder.layers": 1, "method.encoder.dim": 32, "method.encoder.hidden": 64},
)
