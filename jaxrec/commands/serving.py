"""Commands that bring models to use: export, query, explain, embed."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

from jaxrec.artifact import say, write_atomically
from jaxrec.commands.options import Command, chosen, run_arguments, workdir


def _export(options: argparse.Namespace, rest: list[str]) -> None:
    from jaxrec.serve.export import export
    from jaxrec.serve.search_bundle import is_search_bundle
    from jaxrec.stages.runs import load_run

    experiment = chosen(options, rest)
    experiment, params, step = load_run(experiment, workdir(options, experiment))
    export(experiment, params, step, Path(options.to))
    ask = "--text WORDS" if is_search_bundle(Path(options.to)) else "--find WORD"
    say(f"exported {experiment.name} at step {step:,} to {options.to}; try: jaxrec query {options.to} {ask}")


def _query(options: argparse.Namespace, rest: list[str]) -> None:
    from jaxrec.serve.bundle import Bundle
    from jaxrec.serve.search_bundle import is_search_bundle

    if is_search_bundle(Path(options.bundle)):
        return _search(options)
    if options.text:
        raise ValueError(f"{options.bundle} recommends items and searches no texts; give --history ID,ID,..., or --find TEXT to look up ids by title")
    bundle = Bundle.open(Path(options.bundle))
    if options.find:
        for item, title in bundle.find(options.find)[: options.k]:
            print(item if title == item else f"{item}\t{title}")
        return
    if not options.history:
        raise ValueError("give --history ID,ID,... (oldest first), or --find TEXT to look up ids by title")
    history = [item.strip() for item in options.history.split(",")]
    users = [options.user] if options.user else None
    times = [_times(options.times)] if options.times else None
    answers = bundle.recommend([history], options.k, keep_seen=options.keep_seen, exact=options.exact, users=users, times=times, **_lists(options))[0]
    if options.json:
        print(json.dumps([dataclasses.asdict(answer) for answer in answers], indent=1))
        return
    if not answers:
        say("nothing is left to recommend: --allow, --deny and the history leave no item")
    for place, answer in enumerate(answers, 1):
        print(f"{place:3}  {answer.score:8.4f}  {answer.item}" + (f"  {answer.title}" if answer.title != answer.item else ""))


def _times(text: str) -> list[float]:
    """The numbers of --times."""
    try:
        return [float(time) for time in text.split(",")]
    except ValueError as error:
        raise ValueError(f"--times {text}: {error}; give seconds since 1970, one for each item of --history: --times 1700000000,1700000060") from None


def _search(options: argparse.Namespace) -> None:
    """`query` of a bundle of documents."""
    from jaxrec.serve.search_bundle import SearchBundle

    if not options.text:
        raise ValueError(f"{options.bundle} finds documents: give --text WORDS")
    answers = SearchBundle.open(Path(options.bundle)).search([options.text], options.k, **_lists(options))[0]
    if options.json:
        print(json.dumps([dataclasses.asdict(answer) for answer in answers], indent=1, ensure_ascii=False))
        return
    if not answers:
        say("nothing is left to find: --allow and --deny leave no document")
    for place, answer in enumerate(answers, 1):
        text = " ".join(answer.text.split())
        print(f"{place:3}  {answer.score:8.4f}  {answer.document}" + (f"  {answer.title}" if answer.title else ""))
        print(f"     {text[:150]}{'...' if len(text) > 150 else ''}")


def _lists(options: argparse.Namespace) -> dict[str, list[str]]:
    """`deny` and `allow` where they are given; --allow "" allows nothing."""
    given = {name: text for name in ("deny", "allow") if (text := getattr(options, name)) is not None}
    return {name: [item.strip() for item in text.split(",") if item.strip()] for name, text in given.items()}


def _explain(options: argparse.Namespace, rest: list[str]) -> None:
    from jaxrec.data.passages import Passages
    from jaxrec.serve.explain import explain_document
    from jaxrec.serve.explain_page import page
    from jaxrec.stages.runs import load_run

    experiment = chosen(options, rest)
    if not isinstance(experiment.data, Passages):
        raise ValueError(f"{options.experiment} retrieves no texts; explain an experiment on Passages, such as experiments/colbert_python_api.py")
    experiment, params, _ = load_run(experiment, workdir(options, experiment))
    explanation = explain_document(experiment.method, params, experiment.data, options.query, options.document)  # type: ignore[arg-type]
    print(explanation.text())
    if options.html:
        write_atomically(Path(options.html), page(explanation))
        say(f"wrote {options.html}; open it in a browser")


def _embed(options: argparse.Namespace, rest: list[str]) -> None:
    from jaxrec.stages.text_vectors import OPTIONS, open_encoder, write_vectors

    encoder = open_encoder(options.model, **{name: getattr(options, name) for name in OPTIONS})
    say(write_vectors(encoder, Path(options.input), Path(options.output), key=options.key).text())


def _export_arguments(parser: argparse.ArgumentParser) -> None:
    run_arguments(parser)
    parser.add_argument("--to", required=True, metavar="DIR", help="the bundle's folder")


def _query_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", metavar="DIR", help="what `jaxrec export` wrote")
    parser.add_argument("--text", default="", metavar="WORDS", help="what to find, for a bundle of documents")
    parser.add_argument("--history", default="", metavar="ID,ID,...", help="the items so far, oldest first")
    parser.add_argument("--times", default="", metavar="T,T,...", help="seconds since 1970 of each item, for a model that uses times")
    parser.add_argument("--user", default="", metavar="ID", help="for a model that uses features of users")
    parser.add_argument("--find", default="", metavar="TEXT", help="list items whose title contains TEXT")
    parser.add_argument("--deny", metavar="ID,ID,...", help="items that are not to be recommended")
    parser.add_argument("--allow", metavar="ID,ID,...", help="the only items that may be recommended")
    parser.add_argument("-k", type=int, default=10, help="how many items")
    parser.add_argument("--keep-seen", action="store_true", help="items of the history may be recommended again")
    parser.add_argument("--exact", action="store_true", help="search all items instead of the ScaNN index")
    parser.add_argument("--json", action="store_true")


def _explain_arguments(parser: argparse.ArgumentParser) -> None:
    run_arguments(parser)
    parser.add_argument("--query", required=True, metavar="TEXT")
    parser.add_argument("--document", required=True, metavar="ID", help="as `jaxrec query` gives it")
    parser.add_argument("--html", default="", metavar="FILE", help="also write a page with the heat map")


def _embed_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="folder or hub id of a causal language model, or of an encoder (BERT, ModernBERT) of sentence-transformers")
    parser.add_argument("--input", required=True, metavar="FILE", help="texts: .jsonl, an object or string on each line, or .txt")
    parser.add_argument("--output", required=True, metavar="FILE.npy", help="or a folder, which gets a vectors.npy")
    parser.add_argument("--key", default="text", help="of the text in a .jsonl object")
    parser.add_argument("--plan", help="vanilla, echo, prompt_eol, tp, tp_sentence, htp (the default) or htp_omit")
    parser.add_argument("--blocks", metavar="sentence|N", help="what a block is: a sentence, or so many tokens")
    parser.add_argument("--start", type=int, help="the first layer that placeholders are written before, from 0")
    parser.add_argument("--exit", type=int, help="the layer from which on they are not")
    parser.add_argument("--output-layer", type=int, metavar="L", help="whose states are pooled; -1 is the last, -2 the last but one")
    parser.add_argument("--pooling", help="mean or last; of an encoder, mean or cls")
    parser.add_argument("--prompt", metavar="TEXT", help="with {text} in it")
    parser.add_argument("--length", type=int, help="most tokens of a row; longer texts are cut, and counted")
    parser.add_argument("--batch", type=int, help="texts at a time")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"))


COMMANDS = {
    "export": Command(
        _export, "write a bundle for serving: parameters, StableHLO, the items, and for an encoder their ScaNN index", _export_arguments, overridable=True
    ),
    "query": Command(_query, "recommend items, or find documents, from a bundle", _query_arguments),
    "explain": Command(_explain, "which words of a document answered each word of a query", _explain_arguments, overridable=True),
    "embed": Command(_embed, "vectors of a file of texts, without training; run the same command again to resume", _embed_arguments),
}
