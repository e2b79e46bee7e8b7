"""The command line: train, eval, compare, export, query, explain, embed, data, demo. `jaxrec COMMAND --help` says more."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxrec.artifact import cache_dir, say, write_atomically

if TYPE_CHECKING:  # the command line imports only what a command needs
    from jaxrec.experiment import Experiment


def main(argv: Sequence[str] | None = None) -> None:
    """Runs one command. What goes wrong with the input ends with one message and exit code 2, a bug with its traceback."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(prog="jaxrec", description="Train, evaluate, export and query recommenders in JAX.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (function, summary, declare) in COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=summary, add_help=name not in OVERRIDABLE)
        declare(command)
        command.set_defaults(function=function)
    if arguments[:1] and arguments[0] in OVERRIDABLE and {"-h", "--help"} & set(arguments) and not any(a.endswith(".py") for a in arguments):
        commands.choices[arguments[0]].print_help()
        return
    if arguments[:1] and arguments[0] in OVERRIDABLE and {"-h", "--help"} & set(arguments):
        print(commands.choices[arguments[0]].format_help())  # then, from the file, the fields of the experiment
    known, rest = parser.parse_known_args(arguments)
    if rest and known.command not in OVERRIDABLE:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    _settle_environment()
    try:
        known.function(known, rest)
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except (ValueError, FileNotFoundError, RuntimeError, FloatingPointError, OSError, ImportError) as error:
        if "--traceback" in arguments or known.traceback:
            raise
        say(f"jaxrec {known.command}: {error}")
        raise SystemExit(2) from None


# --- commands ---------------------------------------------------------------------------------------------------------------------


def _train(options: argparse.Namespace, rest: list[str]) -> None:
    from jaxrec.train.loop import train

    if not options.sweep:
        experiment = _experiment(options, rest)
        result = train(experiment, _workdir(options, experiment))
        print(json.dumps(result))
        return
    rows = []
    for choice in itertools.product(*map(_choices, options.sweep)):
        experiment = _experiment(options, [*rest, *(part for path, value in choice for part in (f"--{path}", value))])
        label = ",".join(f"{path.rsplit('.', 1)[-1]}={value}" for path, value in choice)
        say(f"\n=== {label}")
        rows.append({"run": label, **train(experiment, _workdir(options, experiment) / "sweep" / label)})
        write_atomically(_workdir(options, experiment) / "sweep.json", json.dumps(rows, indent=1))
    print(_columns(rows))


def _eval(options: argparse.Namespace, rest: list[str]) -> None:
    from jaxrec.data.passages import Passages
    from jaxrec.data.text import TextRows

    experiment = _experiment(options, rest)
    if isinstance(experiment.data, Passages):
        from jaxrec.evals import search
        from jaxrec.stages.searches import evaluate_search

        judged = evaluate_search(experiment, _workdir(options, experiment), options.split)
        print(json.dumps(search.to_json(judged), indent=1) if options.json else search.table(judged))
        return
    if isinstance(experiment.data, TextRows):
        from jaxrec.evals import language_modelling
        from jaxrec.stages.language_runs import evaluate_text

        found = evaluate_text(experiment, _workdir(options, experiment), options.split)
        print(json.dumps(found, indent=1) if options.json else language_modelling.table(experiment.name, found))
        return
    from jaxrec.evals.report import table, to_json
    from jaxrec.stages.runs import evaluate_beside

    systems = evaluate_beside(experiment, _workdir(options, experiment), options.split)
    print(json.dumps(to_json(systems), indent=1) if options.json else table(systems))


def _compare(options: argparse.Namespace, rest: list[str]) -> None:
    from jaxrec.evals import complementarity
    from jaxrec.evals.compare import compare, text, to_json
    from jaxrec.evals.retrieval import Ranks

    ranks = []
    for run in (options.first, options.second):
        path = Path(run) / f"ranks_{options.split}.npz"
        if not path.exists():
            raise FileNotFoundError(f"{path} does not exist; evaluate the run first: jaxrec eval experiments/{Path(run).name}.py --split {options.split}")
        ranks.append(Ranks.load(path))
    names = (Path(options.first).name, Path(options.second).name)
    result = compare(*ranks, names=names)
    if options.json:
        print(json.dumps(to_json(result), indent=1))
    else:
        print(text(result, names) + "\n\n" + complementarity.text(complementarity.complementarity(*ranks, names=names), names))


def _export(options: argparse.Namespace, rest: list[str]) -> None:
    from jaxrec.serve.export import export
    from jaxrec.serve.search_bundle import is_search_bundle
    from jaxrec.stages.runs import load_run

    experiment = _experiment(options, rest)
    experiment, params, step = load_run(experiment, _workdir(options, experiment))
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
    times = [[float(time) for time in options.times.split(",")]] if options.times else None
    lists = {name: [item.strip() for item in text.split(",")] for name in ("deny", "allow") if (text := getattr(options, name))}
    answers = bundle.recommend([history], options.k, keep_seen=options.keep_seen, exact=options.exact, users=users, times=times, **lists)[0]
    if options.json:
        print(json.dumps([dataclasses.asdict(answer) for answer in answers], indent=1))
        return
    for place, answer in enumerate(answers, 1):
        print(f"{place:3}  {answer.score:8.4f}  {answer.item}" + (f"  {answer.title}" if answer.title != answer.item else ""))


def _search(options: argparse.Namespace) -> None:
    """`query` of a bundle of documents."""
    from jaxrec.serve.search_bundle import SearchBundle

    if not options.text:
        raise ValueError(f"{options.bundle} finds documents: give --text WORDS")
    lists = {name: [document.strip() for document in text.split(",")] for name in ("deny", "allow") if (text := getattr(options, name))}
    answers = SearchBundle.open(Path(options.bundle)).search([options.text], options.k, **lists)[0]
    if options.json:
        print(json.dumps([dataclasses.asdict(answer) for answer in answers], indent=1, ensure_ascii=False))
        return
    for place, answer in enumerate(answers, 1):
        text = " ".join(answer.text.split())
        print(f"{place:3}  {answer.score:8.4f}  {answer.title or answer.document}\n     {text[:150]}{'...' if len(text) > 150 else ''}")


def _explain(options: argparse.Namespace, rest: list[str]) -> None:
    from jaxrec.data.passages import Passages
    from jaxrec.serve.explain import explain_document
    from jaxrec.stages.runs import load_run

    experiment = _experiment(options, rest)
    if not isinstance(experiment.data, Passages):
        raise ValueError(f"{options.experiment} retrieves no texts; explain an experiment on Passages, such as experiments/colbert_python_api.py")
    experiment, params, _ = load_run(experiment, _workdir(options, experiment))
    explanation = explain_document(experiment.method, params, experiment.data, options.query, options.document)  # type: ignore[arg-type]
    print(explanation.text())
    if options.html:
        write_atomically(Path(options.html), explanation.html())
        say(f"wrote {options.html}; open it in a browser")


def _embed(options: argparse.Namespace, rest: list[str]) -> None:
    from jaxrec.stages.text_vectors import OPTIONS, open_encoder, write_vectors

    encoder = open_encoder(options.model, **{name: getattr(options, name) for name in OPTIONS})
    say(write_vectors(encoder, Path(options.input), Path(options.output), key=options.key).text())


def _data(options: argparse.Namespace, rest: list[str]) -> None:
    from jaxrec.data import catalogue

    if options.action == "ls":
        print(_columns(catalogue.listing()))
    elif options.name is None:
        raise ValueError(f"jaxrec data {options.action} needs a NAME; `jaxrec data ls` lists them")
    elif options.action == "sids":
        _sids(options)
    else:
        source = catalogue.find(options.name)
        interactions = source.get()
        if options.action == "info":
            print(json.dumps(catalogue.statistics(source, interactions), indent=1, ensure_ascii=False))
        else:
            say(f"{options.name} is in {source.folder()}")


def _sids(options: argparse.Namespace) -> None:
    """The semantic IDs of a data set (text vectors, residual k-means), or those of an experiment."""
    from jaxrec.data import catalogue
    from jaxrec.stages.embeddings import TextEmbeddings
    from jaxrec.stages.semantic_ids import SemanticIds
    from jaxrec.stages.sid_report import plot, report, text, tree

    if options.name.endswith(".py"):
        from jaxrec.data.sequences import with_histories
        from jaxrec.experiment import load
        from jaxrec.stages.sid_trie import SidTrie

        data = with_histories(load(options.name).data)
        source, found = data.source, [column.sids for column in data.columns if isinstance(column, SidTrie) and isinstance(column.sids, SemanticIds)]
        if not found:
            raise ValueError(f"{options.name} has no semantic IDs: its data.columns hold no SidTrie of SemanticIds")
        sids = found[0]
    else:
        source = catalogue.find(options.name)
        sids = SemanticIds(TextEmbeddings(source))
    interactions, table = source.get(), sids.get()
    titles = interactions.titles()
    if options.item:
        if options.item not in interactions.items:
            raise ValueError(f"{options.name} has no item {options.item!r}; ids are like {', '.join(interactions.items[:3])}")
        print("".join(f"{code} " for code in table.sid(interactions.items.index(options.item) + 1)))
        return
    prefix = [int(code) if code.strip().isdigit() else -1 for code in options.prefix.split(",")] if options.prefix else []
    for place, (code, width) in enumerate(zip(prefix, table.widths)):
        if not 0 <= code < width:
            raise ValueError(f"--prefix {options.prefix}: code {place + 1} should be a number 0..{width - 1}, as in --prefix {table.codes[1, 0]}")
    if not prefix:
        print(text(report(table, sids.embeddings.get(), titles, sids.reconstructed())), end="\n\n")
    print(tree(table, titles, prefix))
    if options.plot:
        plot(table, Path(options.plot), titles)
        say(f"drew {options.plot}")


def _demo(options: argparse.Namespace, rest: list[str]) -> None:
    from jaxrec.demo import demo

    demo(Path(options.workdir))


def _settle_environment() -> None:
    """Compiled programs are kept between commands, unless the user says where or that they are not; libraries keep their advice to themselves."""
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache_dir() / "xla"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
    logging.getLogger("absl").setLevel(logging.ERROR)


# --- arguments --------------------------------------------------------------------------------------------------------------------


def _experiment(options: argparse.Namespace, rest: list[str]) -> Experiment:
    """The experiment of the file, in miniature if `--smoke`, with the dotted overrides applied."""
    import tyro

    from jaxrec.experiment import Experiment, load

    if not options.experiment.endswith(".py"):
        raise ValueError(f"{options.experiment!r} is no experiment file; put the .py file first: jaxrec {options.command} FILE --method.dim 128")
    experiment = load(options.experiment)
    if options.smoke:
        experiment = experiment.smoked()
    return tyro.cli(Experiment, default=experiment, args=rest, prog=f"jaxrec {options.command} {options.experiment}")


def _workdir(options: argparse.Namespace, experiment: Experiment) -> Path:
    return Path(options.workdir) if options.workdir else Path("runs") / (experiment.name + ("-smoke" if options.smoke else ""))


def _choices(sweep: str) -> list[tuple[str, str]]:
    """`method.dim=64,128` as [("method.dim", "64"), ("method.dim", "128")]."""
    path, equals, values = sweep.partition("=")
    if not (path and equals and values):
        raise ValueError(f"--sweep {sweep!r} should look like method.dim=64,128")
    return [(path, value) for value in values.split(",")]


def _columns(rows: Sequence[dict[str, Any]]) -> str:
    """Rows as aligned text, a column per key."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    cells = [names] + [[f"{v:.4f}" if isinstance(v := row.get(name, ""), float) else str(v) for name in names] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells)


def _run_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("experiment", help="an experiment's Python file")
    parser.add_argument("--workdir", default="", help="of the run (default: runs/<name of the file>)")
    parser.add_argument("--smoke", action="store_true", help="a few steps on synthetic data: does it run?")
    parser.add_argument("--traceback", action="store_true", help="show where an error arose")


def _train_arguments(parser: argparse.ArgumentParser) -> None:
    _run_arguments(parser)
    parser.add_argument("--sweep", action="append", default=[], metavar="PATH=VALUE,VALUE", help="run each value in turn, into one table; may be repeated")


def _eval_arguments(parser: argparse.ArgumentParser) -> None:
    _run_arguments(parser)
    parser.add_argument("--split", choices=("validation", "test"), default="test")
    parser.add_argument("--json", action="store_true")


def _compare_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("first", metavar="RUN", help="a run's folder, already evaluated")
    parser.add_argument("second", metavar="RUN")
    parser.add_argument("--split", choices=("validation", "test"), default="test")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--traceback", action="store_true")


def _export_arguments(parser: argparse.ArgumentParser) -> None:
    _run_arguments(parser)
    parser.add_argument("--to", required=True, metavar="DIR", help="the bundle's folder")


def _query_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", metavar="DIR", help="what `jaxrec export` wrote")
    parser.add_argument("--text", default="", metavar="WORDS", help="what to find, for a bundle of documents")
    parser.add_argument("--history", default="", metavar="ID,ID,...", help="the items so far, oldest first")
    parser.add_argument("--times", default="", metavar="T,T,...", help="seconds since 1970 of each item, for a model that uses times")
    parser.add_argument("--user", default="", metavar="ID", help="for a model that uses features of users")
    parser.add_argument("--find", default="", metavar="TEXT", help="list items whose title contains TEXT")
    parser.add_argument("--deny", default="", metavar="ID,ID,...", help="items that are not to be recommended")
    parser.add_argument("--allow", default="", metavar="ID,ID,...", help="the only items that may be recommended")
    parser.add_argument("-k", type=int, default=10, help="how many items")
    parser.add_argument("--keep-seen", action="store_true", help="items of the history may be recommended again")
    parser.add_argument("--exact", action="store_true", help="search all items instead of the ScaNN index")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--traceback", action="store_true")


def _explain_arguments(parser: argparse.ArgumentParser) -> None:
    _run_arguments(parser)
    parser.add_argument("--query", required=True, metavar="TEXT")
    parser.add_argument("--document", required=True, metavar="ID", help="as `jaxrec query` gives it")
    parser.add_argument("--html", default="", metavar="FILE", help="also write a page with the heat map")


def _embed_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="folder or hub id of a causal language model, or of a BERT as sentence-transformers publishes them")
    parser.add_argument("--input", required=True, metavar="FILE", help="texts: .jsonl, an object or string on each line, or .txt")
    parser.add_argument("--output", required=True, metavar="FILE.npy", help="or a folder, which gets a vectors.npy")
    parser.add_argument("--key", default="text", help="of the text in a .jsonl object")
    parser.add_argument("--plan", help="vanilla, echo, prompt_eol, tp, tp_sentence, htp (the default) or htp_omit")
    parser.add_argument("--blocks", metavar="sentence|N", help="what a block is: a sentence, or so many tokens")
    parser.add_argument("--start", type=int, help="the first layer that placeholders are written before, from 0")
    parser.add_argument("--exit", type=int, help="the layer from which on they are not")
    parser.add_argument("--output-layer", type=int, metavar="L", help="whose states are pooled; -1 is the last, -2 the last but one")
    parser.add_argument("--pooling", help="mean or last; of a BERT, mean or cls")
    parser.add_argument("--prompt", metavar="TEXT", help="with {text} in it")
    parser.add_argument("--length", type=int, help="most tokens of a row; longer texts are cut, and counted")
    parser.add_argument("--batch", type=int, help="texts at a time")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"))
    parser.add_argument("--traceback", action="store_true")


def _data_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=("ls", "info", "build", "sids"), help="sids: the semantic IDs of the items, and what they share")
    parser.add_argument("name", nargs="?", help="a data set of `jaxrec data ls`, the path of your own CSV or Parquet file, or (sids) an experiment with IDs")
    parser.add_argument("--prefix", default="", metavar="CODE,CODE", help="sids: the items of this prefix, by title")
    parser.add_argument("--item", default="", metavar="ID", help="sids: the codes of this item")
    parser.add_argument("--plot", default="", metavar="FILE.png", help="sids: draw the tree of IDs and the use of the codes")
    parser.add_argument("--traceback", action="store_true")


def _demo_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workdir", default="runs/demo")
    parser.add_argument("--traceback", action="store_true")


Declare = Callable[[argparse.ArgumentParser], None]
COMMANDS: dict[str, tuple[Callable[[argparse.Namespace, list[str]], None], str, Declare]] = {
    "train": (_train, "train an experiment; run the same command again to resume; any field is an option: --method.dim 128", _train_arguments),
    "eval": (_eval, "rank the whole catalogue for every user, beside all baselines", _eval_arguments),
    "compare": (_compare, "is one run better than another? paired, with significance", _compare_arguments),
    "export": (_export, "write a bundle for serving: parameters, StableHLO, the items, and for an encoder their ScaNN index", _export_arguments),
    "query": (_query, "recommend items, or find documents, from a bundle", _query_arguments),
    "explain": (_explain, "which words of a document answered each word of a query", _explain_arguments),
    "embed": (_embed, "vectors of a file of texts, without training; run the same command again to resume", _embed_arguments),
    "data": (_data, "list, describe or build data sets; show the semantic IDs of their items", _data_arguments),
    "demo": (_demo, "data, training, evaluation, export and query, on this machine's Python code", _demo_arguments),
}
OVERRIDABLE = ("train", "eval", "export", "explain")
