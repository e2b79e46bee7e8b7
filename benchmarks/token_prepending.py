"""Which plan of token prepending finds long documents best, for a language model that was not trained to embed.

    python -m benchmarks.token_prepending MODEL --documents 300 --queries 400 --length 1024

MODEL is a folder or hub id of a causal language model. The documents are those of `PythonModules`, thousands of words each, cut to `--length` tokens,
placeholders included; the queries are sentences taken out of them. Every plan reads the same queries and documents with the same model; beside the plan, what
differs is how much of a cut document its placeholders leave room for.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from pathlib import Path

import numpy as np

from benchmarks.record import RESULTS, record
from jaxrec.artifact import say
from jaxrec.data.builders.python_module_docs import PythonModules
from jaxrec.data.collection import Collection, Qrels, Queries
from jaxrec.evals.search import DEPTH, evaluate
from jaxrec.index.exact import ExactIndex
from jaxrec.nn.token_prepending import TokenPrepending
from jaxrec.stages.language_model_embeddings import PLACE, PROMPTS, LanguageModelEncoder

BLOCK = 64  # tokens
PLANS: dict[str, tuple[TokenPrepending, int]] = {  # with the tokens of a block; 0 = sentences
    "vanilla, mean": (TokenPrepending("vanilla"), 0),
    "vanilla, last": (TokenPrepending("vanilla", pooling="last"), 0),
    "echo, mean": (TokenPrepending("echo"), 0),
    "PromptEOL": (TokenPrepending("prompt_eol"), 0),
    "TP, last": (TokenPrepending("tp", pooling="last"), 0),
    "TP, mean": (TokenPrepending("tp"), 0),
    "own placeholders alone, blocks": (TokenPrepending("tp_sentence"), BLOCK),
    "front placeholders alone, blocks": (TokenPrepending("htp_omit"), BLOCK),
    "HTP, blocks": (TokenPrepending("htp"), BLOCK),
    "HTP, sentences": (TokenPrepending("htp"), 0),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder or hub id")
    parser.add_argument("--documents", type=int, default=300)
    parser.add_argument("--queries", type=int, default=400, help="at most, of the test split")
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--exit", type=int, default=7, help="the layer from which on nothing is written")
    parser.add_argument("--output-layer", type=int, default=-2)
    parser.add_argument("--folder", type=Path, default=RESULTS, help="of the results")
    parser.add_argument("--prefix", default="", help="what stands before a row's text and placeholders, in every plan")
    parser.add_argument("--plans", nargs="+", choices=list(PLANS), default=list(PLANS), metavar="PLAN", help=f"of: {'; '.join(PLANS)}")
    options = parser.parse_args()
    collection = part(PythonModules().get(), options.documents, options.queries)
    asked, texts = collection.queries["test"].texts, collection.passages()
    for name in options.plans:
        plan, blocks = PLANS[name]
        plan = dataclasses.replace(plan, exit=options.exit, output_layer=options.output_layer)
        prompt = options.prefix and options.prefix + PROMPTS.get(plan.plan, PLACE)
        encoder = LanguageModelEncoder(options.model, plan, prompt=prompt, blocks=blocks, length=options.length, batch=options.batch, dtype=options.dtype)
        began = time.perf_counter()
        (documents, cut), queries = encoder.encode_and_count(texts), encoder.encode(asked)
        seconds = time.perf_counter() - began
        found, _ = ExactIndex(np.arange(len(documents)), documents).search(queries, min(DEPTH, len(documents)))
        judged = evaluate(found, collection, "test")
        interval = judged.intervals()["nDCG@10"]
        say(f"  {name}: nDCG@10 {interval.mean:.4f} ({interval.low:.4f} to {interval.high:.4f}), {cut} documents cut, {seconds:.0f} s")
        row = {
            "name": f"{Path(options.model).name}, {options.length} tokens{f', from {options.prefix!r}' if options.prefix else ''}: {name}",
            "ours": round(interval.mean, 5),
            "unit": "nDCG@10",
            "interval": [round(interval.low, 5), round(interval.high, 5)],
            "documents": len(documents),
            "documents_cut": cut,
            "queries": len(queries),
            "seconds": round(seconds, 1),
        }
        record("token_prepending", [row], folder=options.folder)  # one by one: an interrupted call has measured what it says it has


def part(collection: Collection, documents: int, queries: int) -> Collection:
    """So many test queries, evenly chosen, and so many documents, those that answer them among them."""
    split, qrels = collection.queries["test"], collection.qrels["test"]
    asked = np.unique(np.linspace(0, len(split.ids) - 1, min(queries, len(split.ids))).astype(int))
    relevant = np.unique(np.concatenate([qrels.of(query)[0] for query in asked]))
    others = np.random.default_rng(0).permutation(np.setdiff1d(np.arange(len(collection.ids)), relevant))
    kept = np.sort(np.concatenate([relevant, others[: max(0, documents - len(relevant))]]))
    judged = [(place, np.searchsorted(kept, document), grade) for place, query in enumerate(asked) for document, grade in zip(*qrels.of(query), strict=True)]
    own = Qrels.gather(*map(np.array, zip(*judged, strict=True)), count=len(asked))
    titles, texts, ids = ([column[row] for row in kept] for column in (collection.titles, collection.texts, collection.ids))
    return Collection(ids, titles, texts, {"test": Queries([split.ids[q] for q in asked], [split.texts[q] for q in asked])}, {"test": own})


if __name__ == "__main__":
    main()
