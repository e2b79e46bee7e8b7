"""SciFact with the sentences that decide its claims, in place of reasoning.

Wadden et al., 2020, arXiv:2004.14974.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

from jaxrec.artifact import checksum, say
from jaxrec.data.builders.beir import Beir
from jaxrec.data.builders.text_lines import read_json_lines, read_lines
from jaxrec.data.collection import Collection
from jaxrec.data.sentences import sentence_ends

_EVIDENCE = "evidence_train.tsv"
_COLUMNS = "claim-id\tcorpus-id\tlabel\tsentences"


@dataclasses.dataclass(frozen=True)
class SciFactEvidence(Beir):
    """BEIR's SciFact, where the reasoning of a training claim is what the annotators marked: the sentences that support or contradict it.

    This is no chain of thought that leads from a claim to a document. The sentences are the document's own, so who reads them has seen part of the
    answer; they stand in for a language model's reasoning where there is none. About six in ten training claims have some.

    Beside BEIR's files the folder has `evidence_train.tsv`: lines `claim id, document id, label, sentences` apart by tabs, under that header, sentences
    being numbers from 0, as in `[2 5]`; and its `corpus.jsonl` says `n_sentences` of each document. Sentences are found by a rule; evidence in a
    document where it finds another number of them is left out, with a message.
    """

    name: str = "scifact"

    def inputs(self) -> dict[str, Any]:
        return {**super().inputs(), _EVIDENCE: checksum(self._folder(_EVIDENCE) / _EVIDENCE)}

    def read(self) -> Collection:
        collection = super().read()
        corpus = self._file("corpus.jsonl")
        counts = {row["_id"]: row["n_sentences"] for row in read_json_lines(corpus, {"_id": str, "n_sentences": int})}
        texts = dict(zip(collection.ids, collection.texts, strict=True))
        steps: dict[str, dict[str, None]] = {}  # by claim, each sentence once
        left_out = 0
        for where, claim, document, numbers in read_evidence(self._folder(_EVIDENCE) / _EVIDENCE):
            if document not in texts:
                raise ValueError(f"{where}: document {document!r} is not in {corpus}; the two files must belong together")
            ends = [0, *sentence_ends(texts[document])]
            if len(ends) - 1 != counts[document]:
                left_out += 1
                continue
            if numbers[-1] >= counts[document]:
                raise ValueError(f"{where}: sentence {numbers[-1]} is none of the {counts[document]} of document {document!r}; they are numbered from 0")
            steps.setdefault(claim, {}).update({texts[document][ends[number] : ends[number + 1]].strip(): None for number in numbers})
        found = [list(steps.get(claim, {})) for claim in collection.queries["train"].ids]
        kept = sum(map(bool, found))
        say(f"  {kept:,} of {len(found):,} training claims have evidence; {left_out:,} lines are left out, for their documents split into other sentences")
        return dataclasses.replace(collection, reasoning={"train": found})


def read_evidence(path: Path) -> list[tuple[str, str, str, list[int]]]:
    """(file and line, claim, document, rising numbers of sentences) of each line."""
    header, *lines = read_lines(path)
    if header != _COLUMNS:
        raise ValueError(f"{path}:1: expected the header {_COLUMNS!r}, got {header[:80]!r}")
    rows = []
    for number, line in enumerate(lines, start=2):
        fields = line.split("\t")
        if len(fields) != 4 or not re.fullmatch(r"\[\s*\d+(\s+\d+)*\s*\]", fields[3]):
            raise ValueError(f"{path}:{number}: expected claim id, document id, label and sentences as in [2 5] apart by tabs, got {line[:80]!r}")
        rows.append((f"{path}:{number}", fields[0], fields[1], sorted(map(int, fields[3].strip("[]").split()))))
    return rows
