"""Writes the tables of README.md and docs/results.md from benchmarks/results: `python -m benchmarks.readme`; `--check` fails if they are stale."""

from __future__ import annotations

import importlib
import json
import re
import sys
from pathlib import Path
from typing import Any

from benchmarks.accuracy import KEPT, PUBLISHED, REMOVED, dataset_of
from jaxrec import experiment
from jaxrec.artifact import write_atomically

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
MODULES = {"SASRec": "sequential.sasrec", "ESASRec": "sequential.esasrec", "HSTU": "sequential.hstu", "BERT4Rec": "sequential.bert4rec"}
MODULES |= {"EnsRec": "sequential.ensrec", "TIGER": "generative.tiger", "TIGERDecoder": "generative.tiger_decoder"}
MODULES |= {"CandidateEnsemble": "generative.candidate_ensemble"}
MODULES |= {"ColBERT": "late_interaction.colbert", "XTR": "late_interaction.xtr", "ColBERTer": "late_interaction.colberter"}
MODULES |= {"KinyaColBERT": "late_interaction.kinyacolbert", "ColEmbed": "late_interaction.colembed"}
MODULES |= {"TurkColBERT": "late_interaction.turkcolbert"}
MODULES |= {"LastToken": "dense.last_token", "LaSER": "dense.laser"}
MODULES |= {"HBCT": "sequential.hbct", "Hydra": "late_interaction.hydra", "MetaLoRA": "adaptation.meta_lora", "CausalLM": "language.causal_lm"}
MODULES |= {"M2BERT": "encoders.m2_bert", "M2BERTPretraining": "encoders.m2_bert_pretraining"}
MODULES |= {"Popularity": "sequential.popularity", "LastItem": "sequential.last_item", "Markov": "sequential.markov", "ItemKNN": "sequential.item_knn"}
PROTOCOLS = (KEPT, REMOVED)  # as most papers, and as the strongest published numbers
METRICS = ("Recall@10", "NDCG@10")
SEARCH = ("nDCG@10", "Recall@10", "Recall@100")
SURVIVORS = re.compile(r"(passing keys|keys that pass in both views) per query, n = (\d+), d = (\d+), beta = ([\d.]+)")
SPEED = ("sasrec_step", "input_pipeline", "beam_search", "residual_kmeans", "maxsim", "maxsim_gradient", "threshold_attention", "generation")


def main() -> None:
    tables = {
        "README.md": {"methods": methods()},
        "docs/results.md": {
            "accuracy": accuracy(load("accuracy")),
            "sids": sids(load("sid_quality")),
            "grid": grid(load("grid_study")),
            "trie": trie(load("trie_scale")),
            "search": search(load("scifact")),
            "index": index(load("multivector_index")),
            "reduction": reduction(load("token_reduction")),
            "language": language(load("long_context")),
            "passkey": passkey(load("passkey")),
            "personas": personas(load("meta_lora_personas")),
            "prepending": prepending(load("token_prepending")),
            "parity": parity(load("parity")),
            "speed": speed({name: load(name) for name in SPEED}),
            "survivors": survivors(load("threshold_attention")),
        },
    }
    for page, sections in tables.items():
        old = new = (ROOT / page).read_text()
        for section, table in sections.items():
            new = replaced(new, section, table, page)
        if "--check" not in sys.argv:
            write_atomically(ROOT / page, new)
        elif new != old:
            raise SystemExit(f"{page} is stale; run python -m benchmarks.readme")


def load(name: str) -> list[dict[str, Any]]:
    """The recorded results of one benchmark, none if it never ran."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else []


def replaced(text: str, section: str, table: str, page: str) -> str:
    """`text` with what stands between the section's markers replaced."""
    new, places = re.subn(rf"(<!-- {section}: [^\n]*-->\n).*?(<!-- end -->)", lambda found: f"{found[1]}{table}{found[2]}", text, flags=re.DOTALL)
    if places != 1:
        raise ValueError(f"{page} has {places} places for the {section} table, expected one, between <!-- {section}: ... --> and <!-- end -->")
    return new


def paper(method: str) -> str:
    """What the first line of a method's file says about it."""
    return (importlib.import_module(f"jaxrec.methods.{MODULES[method]}").__doc__ or "").splitlines()[0]


def methods() -> str:
    """A row per method: its name, its file, what that says of itself, and the best that was measured."""
    lines = ["| method | file | what it is | measured |", "|---|---|---|---|"]
    found = measured()
    lines += [f"| {method} | `methods/{module.replace('.', '/')}.py` | {paper(method)} | {found.get(method, '')} |" for method, module in MODULES.items()]
    return "\n".join(lines) + "\n"


def measured() -> dict[str, str]:
    """The best test result of each method on Beauty or on SciFact."""
    best: dict[str, tuple[float, str]] = {}
    for row in load("accuracy"):
        run, protocol = row["name"].split(", ", 1)
        if (group(run), protocol) == ("beauty", REMOVED):
            score = row["ours"]["NDCG@10"]
            best[row["method"]] = max(best.get(row["method"], (0.0, "")), (score, f"Beauty {row['ours']['Recall@10']:.3f} / {score:.3f}"))
    for row in load("scifact"):
        name, _, collection = row["name"].partition(", ")
        if collection == "scifact" and (ROOT / "experiments" / f"{name}.py").exists():
            method, score, new = type(experiment.load(ROOT / "experiments" / f"{name}.py").method).__name__, row["ours"]["nDCG@10"], row.get("new documents")
            best[method] = max(best.get(method, (0.0, "")), (score, f"SciFact {score:.3f}" + (f", new {new['nDCG@10']:.3f}" if new else "")))
    return {method: text for method, (_, text) in best.items()}


def accuracy(results: list[dict[str, Any]]) -> str:
    """A table per data set: a row per run, the two protocols side by side."""
    lines = []
    if results:
        devices = ", ".join(dict.fromkeys(row["device"] for row in results))
        lines += [f"Recall@10 / NDCG@10, mean over seeds; behind ± half of the 95 % bootstrap interval over users. {devices}; {span(results)}.", ""]
    runs: dict[str, dict[str, dict[str, Any]]] = {}
    for row in results:
        run, protocol = row["name"].split(", ", 1)
        runs.setdefault(run, {})[protocol] = row
    for dataset in dict.fromkeys(map(group, runs)):
        lines += [f"| {dataset} | seeds | {' | '.join(PROTOCOLS)} | published |", "|---|---|---|---|---|"]
        mine = {run: rows for run, rows in runs.items() if group(run) == dataset}
        for run, rows in sorted(mine.items(), key=lambda pair: -pair[1][PROTOCOLS[1]]["ours"]["NDCG@10"]):
            cells = [both(rows[protocol]) for protocol in PROTOCOLS]
            protocol, *numbers = PUBLISHED.get(run, ("",))
            published = f"{' / '.join(f'{number:.4f}' for number in numbers)}, {protocol.partition(',')[0]}" if numbers else ""
            lines.append(f"| {run} | {len(rows[PROTOCOLS[0]]['seeds']['NDCG@10'])} | {cells[0]} | {cells[1]} | {published} |")
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def group(run: str) -> str:
    """The table of a run: "sasrec_beauty" and "Markov beauty" are of beauty, "sasrec_beauty refit" of beauty refit."""
    first, _, rest = run.partition(" ")
    return " ".join(filter(None, (dataset_of(first), rest))) if "_" in first else rest


def half(interval: list[float]) -> float:
    return (interval[1] - interval[0]) / 2


def span(results: list[dict[str, Any]]) -> str:
    """When the results were measured."""
    dates = sorted({row["date"] for row in results})
    return dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"


def sids(results: list[dict[str, Any]]) -> str:
    """A row per size of semantic IDs."""
    sizes = [row for row in results if "right choice" in row]
    if not sizes:
        return ""
    lines = [f"{sizes[0]['items']:,} items of Amazon Beauty; {sizes[0]['device']}; {span(sizes)}.", ""]
    lines += ["| residual k-means | different IDs | codes used | variance left | items of the largest ID | right item of its ID, drawn | by popularity |"]
    lines += ["|---|---|---|---|---|---|---|"]
    for row in sizes:
        right, ours = row["right choice"], row["ours"]
        values = (ours["unique"], ours["used"], row["error"], row["largest"], right["random"], right["by popularity"])
        lines.append(f"| {row['name']} | {' | '.join(f'{value:.1%}' if isinstance(value, float) else str(value) for value in values)} |")
    for row in results:
        if "first code" in row:
            kept = "; ".join(f"{name}: {share:.1%} (first code {row['first code'][name]:.1%})" for name, share in row["ours"].items())
            lines += ["", f"Of the {row['unit'].removeprefix('share of the ')}, a tenth of each being others, so many keep their ID: {kept}."]
        elif "dim" in row:
            what = row["name"][0].upper() + row["name"][1:]
            lines += ["", f"{what} of {row['dim']} dimensions to 3 levels of 256 codes takes {row['ours']} s ({row['device']}, load {row['load']})."]
    return "\n".join(lines) + "\n"


def grid(results: list[dict[str, Any]]) -> str:
    """A table per base of GRID's study: a row per variant, the two protocols side by side."""
    lines = []
    for base in dict.fromkeys(row["base"] for row in results):
        mine = [row for row in results if row["base"] == base]
        devices, steps = ", ".join(dict.fromkeys(row["device"] for row in mine)), mine[0]["steps"]
        lines += ["", f"`{base}`, {steps:,} steps each; behind ± half of the 95 % bootstrap interval over users; {devices}; {span(mine)}.", ""]
        lines += [f"| variant | seeds | {' | '.join(PROTOCOLS)} |", "|---|---|---|---|"]
        for variant in dict.fromkeys(row["variant"] for row in mine):
            rows = {row["name"].split(", ", 1)[1]: row for row in mine if row["variant"] == variant}
            lines.append(f"| {variant} | {len(rows[PROTOCOLS[0]]['seeds']['NDCG@10'])} | {' | '.join(both(rows[protocol]) for protocol in PROTOCOLS)} |")
    return "\n".join(lines[1:]) + "\n" if lines else "No variant has been measured yet.\n"


def both(row: dict[str, Any]) -> str:
    """Recall@10 / NDCG@10 with their intervals."""
    return " / ".join(f"{row['ours'][metric]:.4f} ±{half(row['interval'][metric]):.4f}" for metric in METRICS)


def trie(results: list[dict[str, Any]]) -> str:
    """A row per size of the catalogue: what holding a beam search to it costs a step."""
    if not results:
        return ""
    first = results[0]
    lines = [f"Milliseconds a step for so many requests x beams, 4 levels of 256 codes; {first['device']}; {span(results)}.", ""]
    lines += [f"| items | {' | '.join(first['ours'])} | with {first['denied']} items denied | bytes an item | built in, s |", "|---|---|---|---|---|---|"]
    for row in results:
        denied = " / ".join(f"{value:.2f}" for value in row["deny_ms_per_step"].values())
        cells = [*(f"{value:.2f}" for value in row["ours"].values()), denied, f"{row['bytes_per_item']:.0f}", f"{row['build_s']:.2f}"]
        lines.append(f"| {row['name'].partition(' ')[0]} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def search(results: list[dict[str, Any]]) -> str:
    """A row per retriever and collection, the best of each collection first."""
    if not results:
        return ""
    devices = ", ".join(dict.fromkeys(row["device"] for row in results))
    lines = [f"Test queries, every document scored; mean over seeds ± half of the 95 % bootstrap interval over queries. {devices}; {span(results)}.", ""]
    lines += [f"| retriever, collection | seeds | {' | '.join(SEARCH)} | nDCG@10, new documents |", "|---|---|" + "---|" * (len(SEARCH) + 1)]
    for row in sorted(results, key=lambda row: (row["name"].rpartition(", ")[2], -row["ours"]["nDCG@10"])):
        cells = [f"{row['ours'][metric]:.4f} ±{half(row['interval'][metric]):.4f}" for metric in SEARCH]
        cells.append(f"{row['new documents']['nDCG@10']:.4f} of {row['queries of new documents']}" if row.get("new documents") else "")
        lines.append(f"| {row['name']} | {len(row['seeds']['nDCG@10'])} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def index(results: list[dict[str, Any]]) -> str:
    """A row per configuration of an index of token vectors, in the order in which they were measured."""
    real = [row for row in results if not row["name"].startswith("made up")]
    if not real:
        return ""
    first = real[0]
    collection = f"{first['documents']:,} documents of SciFact, {first['tokens']:,} token vectors, queries of {first['query_tokens']:.0f}"
    lines = [f"{collection}; recall of the exact scan's answers; medians of single queries; {first['device']}; {span(real)}.", ""]
    lines += ["| engine | ms a query | times exact | recall@10 | recall@100 | bytes a token | built in, s |", "|---|---|---|---|---|---|---|"]
    for row in real:
        values = (row["ours"], row["times_faster"], row["recall_at_10"], row["recall_at_100"], row["bytes_per_token"], row["build_s"])
        lines.append(f"| {row['name'].partition(', ')[2]} | {' | '.join(map(str, values))} |")
    return "\n".join(lines) + "\n"


def reduction(results: list[dict[str, Any]]) -> str:
    """A row per way to keep fewer tokens or fewer bytes of them, the largest first."""
    if not results:
        return ""
    lines = [
        f"{results[0]['device']}; {span(results)}.",
        "",
        "| retriever | reduction | nDCG@10 | tokens kept | bytes each | bytes a document |",
        "|---|---|---|---|---|---|",
    ]
    for row in sorted(results, key=lambda row: -row["bytes_per_document"]):
        retriever, _, name = row["name"].partition(": ")
        each, document = f"{row['bytes_per_kept_token']:.0f}", f"{row['bytes_per_document']:,.0f}"
        lines.append(f"| {retriever} | {name} | {row['ours']:.4f} | {row['tokens_kept']:.0%} | {each} | {document} |")
    return "\n".join(lines) + "\n"


def language(results: list[dict[str, Any]]) -> str:
    """A row per kind of attention, the lowest loss first: the loss by length of the row, and what the weights look like."""
    if not results:
        return ""
    lengths = list(dict.fromkeys(length for row in results for length in row["loss"]))
    shares = list(results[0]["attention"])
    lines = [f"{results[0]['unit']}, by characters in a row; {results[0]['device']}; {span(results)}.", ""]
    lines += [f"| model, attention | steps | {' | '.join(lengths)} | {' | '.join(shares)} |", "|---|---|" + "---|" * (len(lengths) + len(shares))]
    for row in sorted(results, key=lambda row: row["ours"]):
        cells = [f"{row['loss'][length]['loss']:.4f}" if length in row["loss"] else "" for length in lengths]
        attention = [f"{row['attention'][name]:.3f}" for name in shares]
        lines.append(f"| {row['name']} | {row['steps']} | {' | '.join(cells)} | {' | '.join(attention)} |")
    return "\n".join(lines) + "\n"


def passkey(results: list[dict[str, Any]]) -> str:
    """A row per kind of attention: the share of keys given back whole, by length of the row."""
    if not results:
        return ""
    lengths = list(dict.fromkeys(length for row in results for length in row["keys"]))
    lines = [f"Test keys given back whole, by characters in a row; {results[0]['device']}; {span(results)}.", ""]
    lines += [f"| model, attention | steps | {' | '.join(lengths)} |", "|---|---|" + "---|" * len(lengths)]
    for row in sorted(results, key=lambda row: -row["ours"]):
        cells = [f"{row['keys'][length]['keys']:.3f}" if length in row["keys"] else "" for length in lengths]
        lines.append(f"| {row['name']} | {row['steps']} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def personas(results: list[dict[str, Any]]) -> str:
    """A row per retraining, each task's accuracy averaged over seeds."""
    if not results:
        return ""
    tasks = list(results[0]["tasks"])
    lines = [f"Accuracy, chance {results[0]['chance']}, mean over {len(results[0]['seeds'])} seeds; {results[0]['device']}; {span(results)}.", ""]
    lines += [f"| adapters of new tasks | mean | {' | '.join(tasks)} |", "|---|---|" + "---|" * len(tasks)]
    for row in results:
        cells = [f"{row['tasks'][task]:.3f}" for task in tasks]
        lines.append(f"| {row['name'].partition(', ')[2]} | {row['ours']:.3f} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def prepending(results: list[dict[str, Any]]) -> str:
    """A row per plan of token prepending, best first."""
    if not results:
        return ""
    first = results[0]
    sizes = f"{first['documents']} documents, {first['queries']} queries"
    lines = [f"nDCG@10 ± half of the 95 % bootstrap interval over queries; {sizes}; {first['device']}; {span(results)}.", ""]
    lines += ["| model, tokens of a document: plan | nDCG@10 | seconds |", "|---|---|---|"]
    for row in sorted(results, key=lambda row: -row["ours"]):
        name = row["name"].replace("|", "\\|")  # of tokens like <|im_start|>
        lines.append(f"| {name} | {row['ours']:.3f} ±{half(row['interval']):.3f} | {row['seconds']:.0f} |")
    return "\n".join(lines) + "\n"


def parity(results: list[dict[str, Any]]) -> str:
    """A row per model family: how far our logits are from those of transformers."""
    families = [row for row in results if "bfloat16" in row]
    if not families:
        return ""
    where = f"random weights of small configurations, or a published model's own; {families[0]['device']}; {span(families)}"
    lines = [f"Greatest difference of a logit (of an encoder: of a state) from transformers' in float64; {where}.", ""]
    lines += ["| family | float32, ours | float32, theirs | bfloat16, ours | bfloat16, theirs | greatest value |", "|---|---|---|---|---|---|"]
    for row in families:
        greatest = row.get("greatest logit", row.get("greatest state"))
        single = f"{row['ours']:.1e} | {row['float32 of transformers']:.1e}"
        lines.append(f"| {row['name'].partition(':')[0]} | {single} | {row['bfloat16']} | {row['bfloat16 of transformers']} | {greatest} |")
    return "\n".join(lines) + "\n"


def speed(benchmarks: dict[str, list[dict[str, Any]]]) -> str:
    """A table per benchmark, a row per ratio."""
    lines = ["Medians of interleaved turns in one run."]
    for name, results in benchmarks.items():
        rows = [row for row in results if not SURVIVORS.match(row["name"])]
        if not rows:
            continue
        where = ", ".join(dict.fromkeys(row["device"] for row in rows))
        lines += ["", f"`python -m benchmarks.{name}`: {where}; {span(rows)}.", "", "| ours, peer | ours | peer | ratio | unit |", "|---|---|---|---|---|"]
        for row in rows:
            ours, peer, ratio = (f"{row[key]:,.2f}" if isinstance(row.get(key), (int, float)) else "" for key in ("ours", "peer", "ratio"))
            lines.append(f"| {row['name']} | {ours} | {peer} | {ratio} | {row['unit']} |")
    return "\n".join(lines) + "\n"


def survivors(results: list[dict[str, Any]]) -> str:
    """A row per gate and width, a column per number of keys: how many keys pass, counted and by the formula."""
    found = {match.groups(): row for row in results if (match := SURVIVORS.match(row["name"]))}
    if not found:
        return ""
    rows = list(found.values())
    farthest = max(abs(row["ours"] - row["peer"]) / row["standard_error"] for row in rows if row["standard_error"])
    keys = sorted({int(n) for _, n, _, _ in found})
    where = f"{rows[0]['device']}; {span(rows)}"
    lines = [f"Keys that pass, counted / by the formula; no count is farther than {farthest:.1f} standard errors from it; {where}.", ""]
    lines += [f"| keys that pass | beta | d | {' | '.join(f'n = {n}' for n in keys)} |", "|---|---|---|" + "---|" * len(keys)]
    for what, d, beta in dict.fromkeys((what, d, beta) for what, _, d, beta in sorted(found, key=lambda key: (key[0] != "passing keys", key[3], int(key[2])))):
        cells = [found.get((what, str(n), d, beta)) for n in keys]
        shown = ["" if row is None else f"{row['ours']:.3g} / {row['peer']:.3g}" for row in cells]
        lines.append(f"| {'in one view' if what == 'passing keys' else 'in both views'} | {beta} | {d} | {' | '.join(shown)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
