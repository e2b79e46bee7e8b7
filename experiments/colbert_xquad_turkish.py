"""ColBERT in Turkish: a small BERT learned from scratch on TQuAD's training questions, asked the questions of XQuAD that nobody trained on.

    jaxrec train experiments/colbert_xquad_turkish.py && jaxrec eval experiments/colbert_xquad_turkish.py

XQuAD has no training questions, so TQuAD's (history of science, by Turkish speakers) train, TQuAD's held-out ones validate, and XQuAD's 1,190 test; all
of them search the passages of both sets. Nothing is pretrained: word pieces come from the texts themselves, and there is no number of others for
this setting; TurkColBERT (2025, arXiv 2511.16528) fine-tunes pretrained encoders on MS MARCO in Turkish. Ours: see docs/results.md.
"""

from dataclasses import dataclass

from jaxrec.data.builders.qa_passages import TQuAD, XQuAD
from jaxrec.data.collection import Collection, CollectionSource, Qrels
from jaxrec.data.passages import Passages
from jaxrec.data.tokenizers import WordPiece
from jaxrec.evals.document_retrieval import DocumentRetrieval
from jaxrec.experiment import Experiment
from jaxrec.method import FROM_DATA
from jaxrec.methods.late_interaction.colbert import ColBERT
from jaxrec.nn.bert import BERT
from jaxrec.optimizer import Adam


@dataclass(frozen=True)
class TurkishQuestions(CollectionSource):
    """The passages of TQuAD and XQuAD: TQuAD's questions to train and, those of its test, to validate; XQuAD's to test."""

    tquad: TQuAD
    xquad: XQuAD

    def read(self) -> Collection:
        seen, asked = self.tquad.get(), self.xquad.get()
        judged = asked.qrels["test"]
        moved = Qrels(judged.offsets, judged.documents + len(seen.ids), judged.grades)
        return Collection(
            ids=[f"{name}-{row}" for name, ids in (("tquad", seen.ids), ("xquad", asked.ids)) for row in ids],
            titles=[*seen.titles, *asked.titles],
            texts=[*seen.texts, *asked.texts],
            queries={"train": seen.queries["train"], "validation": seen.queries["test"], "test": asked.queries["test"]},
            qrels={"train": seen.qrels["train"], "validation": seen.qrels["test"], "test": moved},
        )


source = TurkishQuestions(TQuAD(), XQuAD("tr"))

experiment = Experiment(
    method=ColBERT(encoder=BERT(vocabulary=FROM_DATA, length=180, dim=128, layers=2, heads=4, hidden=256, types=1), dim=64, temperature=0.5),
    data=Passages(source, WordPiece(source, size=8192), batch=32, query_length=32, document_length=180),
    steps=1500,
    optimizer=Adam(peak=1e-3, warmup=0.1, decay="linear"),
    evals=(DocumentRetrieval(queries=300, documents=1000),),
    log_every=50,
    eval_every=500,
)
