"""The command on data: list, describe and build data sets, and show the semantic IDs of their items."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from jaxrec.artifact import say
from jaxrec.commands.options import Command, columns


def _data(options: argparse.Namespace, rest: list[str]) -> None:
    from jaxrec.data import catalogue

    if options.action == "ls":
        print(columns(catalogue.listing()))
    elif options.name is None:
        raise ValueError(f"jaxrec data {options.action} needs a NAME; `jaxrec data ls` lists them")
    elif options.action == "sids":
        _sids(options)
    else:
        source = catalogue.find(options.name)
        if options.action == "info":
            print(json.dumps(catalogue.statistics(source), indent=1, ensure_ascii=False))
        else:
            source.get()
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
        source = catalogue.interactions(options.name)
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


def _data_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=("ls", "info", "build", "sids"), help="sids: the semantic IDs of the items, and what they share")
    parser.add_argument("name", nargs="?", help="a data set of `jaxrec data ls`, the path of your own CSV or Parquet file, or (sids) an experiment with IDs")
    parser.add_argument("--prefix", default="", metavar="CODE,CODE", help="sids: the items of this prefix, by title")
    parser.add_argument("--item", default="", metavar="ID", help="sids: the codes of this item")
    parser.add_argument("--plot", default="", metavar="FILE.png", help="sids: draw the tree of IDs and the use of the codes")


COMMANDS = {"data": Command(_data, "list, describe or build data sets; show the semantic IDs of their items", _data_arguments)}
