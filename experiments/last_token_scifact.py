"""A causal language model as a retriever on SciFact (BEIR), small and from scratch: one vector for a text, the mean of its tokens' states.

    jaxrec train experiments/last_token_scifact.py && jaxrec eval experiments/last_token_scifact.py

RepLLaMA (arXiv 2310.08319) and E5-Mistral (arXiv 2401.00368) start from models of seven billion parameters; this one has two million and learns from 919
pairs. To start from a language model: `encoder=hyper_parameters("Qwen/Qwen3-0.6B")` and `lora=LoRA(rank=64, alpha=32.0)` in the method,
`init_from={"base": PretrainedLanguageModel("Qwen/Qwen3-0.6B")}`, and `LanguageModelTokenizer("Qwen/Qwen3-0.6B", query="Claim: ")` in place of
`WordPiece`, all of `jaxrec.stages.pretrained`. Ours: docs/results.md.
"""

from jaxrec.data.builders.beir import Beir
from jaxrec.data.passages import Passages
from jaxrec.data.tokenizers import WordPiece
from jaxrec.evals.document_retrieval import DocumentRetrieval
from jaxrec.experiment import Experiment
from jaxrec.method import FROM_DATA
from jaxrec.methods.dense.last_token import LastToken
from jaxrec.nn.language_model import LanguageModel
from jaxrec.optimizer import Adam
from jaxrec.stages.hard_negatives import BM25Negatives

source = Beir("scifact")

experiment = Experiment(
    method=LastToken(encoder=LanguageModel(vocabulary=FROM_DATA, length=320, dim=128, layers=4, heads=4, hidden=256), pooling="mean"),
    data=Passages(source, WordPiece(source, size=8192), batch=32, query_length=48, document_length=256, negatives=BM25Negatives(source), hard=1),
    steps=600,
    optimizer=Adam(peak=1e-3, warmup=0.1, decay="linear", clip=1.0),
    evals=(DocumentRetrieval(split="train", queries=50, documents=500),),
    log_every=50,
    smoke={"method.encoder.dim": 32, "method.encoder.hidden": 64},
)
