"""The command on data: list, describe and build data sets, and show the semantic IDs of their items."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from jaxrec.artifact import say
from jaxrec.commands.options import Command, chosen, columns

if TYPE_CHECKING:  # the command line imports only what a command needs
    from jaxrec.data.source import Source
    from jaxrec.stages.semantic_ids import SemanticIds


def _data(options: argparse.Namespace, rest: list[str]) -> None:
    from jaxrec.data import catalogue

    if rest and not (options.action == "sids" and str(options.name).endswith(".py")):
        raise ValueError(f"unrecognized arguments: {' '.join(rest)}; dotted options are those of an experiment: jaxrec data sids FILE.py")
    if options.action == "ls":
        print(columns(catalogue.listing()))
    elif options.name is None:
        raise ValueError(f"jaxrec data {options.action} needs a NAME; `jaxrec data ls` lists them")
    elif options.action == "sids":
        _sids(options, rest)
    else:
        source = catalogue.find(options.name)
        if options.action == "info":
            print(json.dumps(catalogue.statistics(source), indent=1, ensure_ascii=False))
        else:
            source.get()
            say(f"{options.name} is in {source.folder()}")


def _chosen(options: argparse.Namespace, rest: list[str]) -> tuple[Source, SemanticIds]:
    """The semantic IDs of an experiment, or of a data set by text vectors and residual k-means."""
    from jaxrec.data import catalogue
    from jaxrec.stages.embeddings import TextEmbeddings
    from jaxrec.stages.quantizers import ResidualKMeans
    from jaxrec.stages.semantic_ids import SemanticIds

    if not options.name.endswith(".py"):
        source = catalogue.interactions(options.name)
        return source, SemanticIds(TextEmbeddings(source), ResidualKMeans(levels=options.levels or 3, codes=options.codes or 256))
    from jaxrec.data.sequences import with_histories

    if options.levels or options.codes:
        raise ValueError(f"--levels and --codes are of a data set; {options.name} says them itself, as in --data.columns.0.sids.quantizer.codes 64")
    data = with_histories(chosen(argparse.Namespace(**vars(options), experiment=options.name), rest).data)
    for column in data.columns:
        if isinstance(sids := getattr(column, "sids", None), SemanticIds):
            return data.source, sids
    raise ValueError(f"{options.name} has no semantic IDs: its data.columns hold no SidTrie or SidPrefixes of SemanticIds")


def _sids(options: argparse.Namespace, rest: list[str]) -> None:
    """Their report, and what a prefix or an item has."""
    from jaxrec.stages.sid_report import plot, report, text, tree

    source, sids = _chosen(options, rest)
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
    if options.json or not prefix:
        facts = report(table, sids.embeddings.get(), titles, sids.reconstructed())
        print(json.dumps(facts, indent=1, ensure_ascii=False) if options.json else text(facts), end="\n" if options.json else "\n\n")
    if options.json:
        return
    print(tree(table, titles, prefix))
    if options.plot:
        plot(table, Path(options.plot), titles)
        say(f"drew {options.plot}")


def _data_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=("ls", "info", "build", "sids"), help="sids: the semantic IDs of the items, and what they share")
    parser.add_argument("name", nargs="?", help="a data set of `jaxrec data ls`, the path of your own CSV or Parquet file, or (sids) an experiment with IDs")
    parser.set_defaults(smoke=False)
    parser.add_argument("--levels", type=int, default=0, help="sids: codes of an item of a data set (3)")
    parser.add_argument("--codes", type=int, default=0, help="sids: different codes of each level (256)")
    parser.add_argument("--json", action="store_true", help="sids: the report alone, for machines")
    parser.add_argument("--prefix", default="", metavar="CODE,CODE", help="sids: the items of this prefix, by title")
    parser.add_argument("--item", default="", metavar="ID", help="sids: the codes of this item")
    parser.add_argument("--plot", default="", metavar="FILE.png", help="sids: draw the tree of IDs and the use of the codes")


COMMANDS = {"data": Command(_data, "list, describe or build data sets; show the semantic IDs of their items", _data_arguments, overridable=True)}
