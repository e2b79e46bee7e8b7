"""The text member of EnsRec on Amazon Beauty: SASRec whose items are their projected texts, with no vectors of their own.

    jaxrec train experiments/sasrec_text_beauty.py && jaxrec eval experiments/sasrec_text_beauty.py

Published, test Recall@10 / NDCG@10: .0937 / .0479 with frozen SentenceT5-XXL vectors (Collins et al. 2025). Ours are of TF-IDF and need
no download; with a sentence encoder at hand, write TextEmbeddings(source, BertEncoder("sentence-transformers/all-MiniLM-L6-v2")).
"""

from jaxrec.data.builders.amazon_p5 import AmazonP5
from jaxrec.data.sequences import Sequences
from jaxrec.evals.validation import NextItemRetrieval
from jaxrec.experiment import Experiment
from jaxrec.methods.sequential.sasrec import SASRec
from jaxrec.nn.features import Feature
from jaxrec.stages.embeddings import TextEmbeddings
from jaxrec.stages.text_encoders import TfidfSvd

source = AmazonP5("beauty")

experiment = Experiment(
    method=SASRec(dim=64, dropout=0.5, negatives=512, temperature=0.1, ids=False, features=(Feature("text", kind="vector"),)),
    data=Sequences(source, batch=32, columns=(TextEmbeddings(source, TfidfSvd(dim=256)),)),
    steps=6600,
    evals=(NextItemRetrieval(),),
    eval_every=330,
    save_every=1000,
)
