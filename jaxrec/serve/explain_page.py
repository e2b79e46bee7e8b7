"""The page of an `Explanation`: a list of what answered each query token, the document as running text, and the matrix of similarities.

Without script everything can be read; with it, pointing at a query token or moving to it by keyboard colours the document by its similarities.
"""

from __future__ import annotations

from collections import Counter
from html import escape

import numpy as np

from jaxrec.serve.explain import MASK, Explanation, context_of, labels_of, spaced, special, spelled, words_in, words_of

LIGHT = ("#ffffff", "#f0f7f5", "#deeeeb", "#c6e2dd", "#a7d2cc", "#83beb8", "#5ba6a1", "#378a88", "#1c6d6f", "#0a5055")
DARK = ("#1a1d21", "#1c272a", "#1f3335", "#234142", "#285250", "#306661", "#3d7f77", "#56a093", "#7fc3b2", "#b5e6d6")
"""The colours of similarities from low to high, on a light and on a dark ground."""


def page(explanation: Explanation) -> str:
    """The whole page, everything of the texts escaped."""
    title = words_of(explanation.query) or "(a query without words)"
    name = f'<p class="name" dir="auto">{escape(explanation.name)}</p>' if explanation.name else ""
    return PAGE.format(
        title=escape(title),
        style=STYLE + _ramp("", LIGHT) + "@media (prefers-color-scheme: dark) {" + _ramp("", DARK) + "}",
        name=name,
        total=f"{explanation.total:.2f}",
        summary=escape(explanation.summary().partition(" = ")[2] or explanation.summary().partition(" from ")[2]),
        answers=_answers(explanation),
        document=_document(explanation),
        legend=_legend(explanation),
        matrix=_matrix(explanation),
        script=SCRIPT,
    )


def levels(similarity: np.ndarray) -> np.ndarray:
    """[N, M] int, 0 for three quarters of the similarities and for what is not compared, then in equal steps to 9, the highest."""
    low, high = scale(similarity)
    share = (np.where(np.isfinite(similarity), similarity, low) - low) / max(high - low, 1e-9)
    return np.clip((share * 10).astype(int), 0, 9)


def scale(similarity: np.ndarray) -> tuple[float, float]:
    """(third quartile, highest) of the similarities."""
    compared = similarity[np.isfinite(similarity)]
    return (float(np.quantile(compared, 0.75)), float(compared.max())) if len(compared) else (0.0, 1.0)


def ink(ground: str) -> str:
    """Black or white, whichever can be read better on a colour."""
    return "#000000" if contrast(ground, "#000000") >= contrast(ground, "#ffffff") else "#ffffff"


def contrast(one: str, other: str) -> float:
    """The contrast of two colours #rrggbb as WCAG 2 defines it, 1 to 21."""
    bright, dark = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


def _luminance(colour: str) -> float:
    parts = (int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5))
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def _ramp(scope: str, colours: tuple[str, ...]) -> str:
    return "".join(f"{scope}.s{level}{{background:{colour};color:{ink(colour)}}}" for level, colour in enumerate(colours) if level) + (
        f"{scope}.bar i,{scope}.key i{{background:{colours[7]}}}"
    )


def _label(explanation: Explanation, place: int) -> str:
    """A query token in its word, the rest of which is pale."""
    tokens = explanation.query
    if special(tokens[place]):
        return f'<code class="token">{escape(tokens[place])}</code>'
    word = next(word for word in words_in(tokens) if place in word)
    parts = [escape(spelled(tokens[other])) if other == place else f'<span class="rest">{escape(spelled(tokens[other]))}</span>' for other in word]
    return f'<span class="token" dir="auto">{"".join(parts)}</span>'


def _answers(explanation: Explanation) -> str:
    """The list of query tokens, a button each; those of the query expansion, many and seldom of interest, are folded away."""
    rows = [(token == MASK, _answer(explanation, place)) for place, token in enumerate(explanation.query)]
    own, masks = ("".join(row for is_mask, row in rows if is_mask == wanted) for wanted in (False, True))
    if not rows:
        return "<p>The query has no tokens, so its score is 0.</p>"
    fold = f"<summary>Query expansion: {explanation.query.count(MASK)} {MASK} tokens bring {explanation.expansion:.2f}</summary>"
    return f"<ol>{own}</ol>" + (f"<details>{fold}<ol>{masks}</ol></details>" if masks else "")


def _answer(explanation: Explanation, place: int) -> str:
    """One query token: its share of the score as a bar, and its answer in context."""
    score, answer, label = float(explanation.scores[place]), int(explanation.answers[place]), labels_of(explanation.query)[place]
    if answer < 0:
        found, says = "no token is compared", f"{_quoted(label)} has no answer: no token of the document is compared."
    else:
        before, best, after = context_of(explanation.document, answer)
        found, says = f"{escape(before)}<mark>{escape(best)}</mark>{escape(after)}", _says(explanation, place, label)
    width = 100 * min(max(score, 0.0) / max(float(explanation.scores.max()), 1e-9), 1.0)
    return (
        f'<li><button type="button" aria-pressed="false" data-row="{place}" data-says="{escape(says)}">{_label(explanation, place)}'
        f'<span class="bar"><i style="width:{width:.1f}%"></i></span><span class="score">{score:.2f}</span>'
        f'<span class="found" dir="auto">{found}</span></button></li>'
    )


def _says(explanation: Explanation, place: int, label: str) -> str:
    """What answered a query token, and what came next."""
    row, best = explanation.similarity[place], int(explanation.answers[place])
    documents = labels_of(explanation.document)
    text = f"{_quoted(label)} is answered by {_quoted(documents[best])} with {row[best]:.2f}"
    others = [int(other) for other in np.argsort(-row, kind="stable")[1:4] if np.isfinite(row[other])]
    return text + (f"; next come {', '.join(f'{_quoted(documents[other])} {row[other]:.2f}' for other in others)}." if others else ".")


def _quoted(label: str) -> str:
    return label if "«" in label else f"“{label}”"  # a piece in quotes within its word needs no others


def _document(explanation: Explanation) -> str:
    """The running text, a span for each token; those that answered are underlined, with how many query tokens they answered."""
    counts, column, parts = Counter(explanation.answers.tolist()), 0, []
    for place, (space, token) in enumerate(zip(spaced(explanation.document), explanation.document, strict=True)):
        kinds, count, place_of = ["piece"], counts[place], ""
        if special(token):
            kinds.append("special")
        if explanation.compared[place]:
            place_of, column = f' data-column="{column}"', column + 1
        else:
            kinds.append("skipped")
        if count:
            kinds.append("answered")
        number = f"<sup>{count}</sup>" if count > 1 else ""
        parts.append(f'{space}<span class="{" ".join(kinds)}"{place_of}>{escape(spelled(token))}{number}</span>')
    return "".join(parts) or "(the document has no tokens)"


def _legend(explanation: Explanation) -> str:
    low, high = scale(explanation.similarity)
    swatches = "".join(f'<span class="s{level}"></span>' for level in range(10))
    return f'<span class="swatches" aria-hidden="true">{swatches}</span><span>similarity {low:.2f} or less, to {high:.2f}</span>'


def _matrix(explanation: Explanation) -> str:
    """The table of all similarities, in hundredths."""
    columns = np.flatnonzero(explanation.compared)
    level = levels(explanation.similarity)
    heads = "".join(f'<th scope="col"><span>{escape(label)}</span></th>' for label in (labels_of(explanation.document)[place] for place in columns))
    rows = []
    for place, label in enumerate(labels_of(explanation.query)):
        cells = []
        for column in columns:
            value = float(explanation.similarity[place, column])
            number = str(round(100 * value)).replace("-", "−") if np.isfinite(value) else ""
            best = column == explanation.answers[place]
            cells.append(f'<td class="s{level[place, column]} best"><b>{number}</b></td>' if best else f'<td class="s{level[place, column]}">{number}</td>')
        rows.append(f'<tr><th scope="row" dir="auto">{escape(label)}</th>{"".join(cells)}</tr>')
    return f"<thead><tr><td></td>{heads}</tr></thead><tbody>{''.join(rows)}</tbody>"


PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<title>{title}: what answered it</title>
<style>{style}</style>
</head>
<body>
<header>
<div><p class="eyebrow">Late interaction, token by token</p><h1 dir="auto">{title}</h1>{name}</div>
<p class="total"><strong>{total}</strong><span>MaxSim score<br>{summary}</span></p>
</header>
<main>
<section aria-labelledby="answers"><h2 id="answers">What answered each query token</h2>
<p class="hint">Point at a token, or move to it with Tab or the arrow keys, to colour the document by it. Click or Enter holds it, Escape lets go.</p>
{answers}</section>
<section class="text" aria-labelledby="document"><h2 id="document">The document</h2>
<p id="says" role="status" data-rest="Underlined tokens answered, those with a number several query tokens. Grey ones are not compared."></p>
<p class="running" dir="auto">{document}</p><p class="key">{legend}</p></section>
<section class="wide" aria-labelledby="matrix"><h2 id="matrix">Every similarity, in hundredths</h2>
<p class="hint">The framed cell of a row is its highest, the one that counts.</p>
<div class="scroll" tabindex="0" role="region" aria-labelledby="matrix"><table>{matrix}</table></div></section>
</main>
<script>{script}</script>
</body>
</html>
"""

STYLE = """
:root { color-scheme: light dark; --ground: #f6f5f1; --panel: #ffffff; --line: #dcdad3; --ink: #1c1f22; --soft: #5c6166; --accent: #b4450b; --held: #fdf1e7 }
@media (prefers-color-scheme: dark) {
:root { --ground: #111316; --panel: #1a1d21; --line: #34383d; --ink: #eceae6; --soft: #a3a8ad; --accent: #ffb27a; --held: #2d241d } }
* { box-sizing: border-box }
body { margin: 0; background: var(--ground); color: var(--ink); font: 15px/1.45 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif }
header, main { max-width: 80rem; margin: 0 auto; padding: 0 1.5rem }
header { display: flex; flex-wrap: wrap; justify-content: space-between; align-items: end; gap: 1rem 3rem; padding-top: 2rem; padding-bottom: 1.25rem }
h1 { margin: .1rem 0 .3rem; font: 600 1.9rem/1.2 ui-serif, Charter, Georgia, "DejaVu Serif", serif; overflow-wrap: anywhere }
h2 { margin: 0 0 .3rem; font-size: 1.02rem }
p { margin: 0 }
.eyebrow, .hint, .name, .key, .total span, #says { color: var(--soft); font-size: .87rem }
.total { display: flex; gap: .8rem; align-items: center; max-width: 26rem }
.total strong { font: 600 2.6rem/1 ui-serif, Charter, Georgia, "DejaVu Serif", serif; font-variant-numeric: tabular-nums }
main { display: grid; grid-template-columns: minmax(0, 1fr) minmax(0, 1.15fr); gap: 1.25rem; align-items: start; padding-bottom: 3rem }
section { background: var(--panel); border: 1px solid var(--line); border-radius: .7rem; padding: 1.1rem 1.2rem; min-width: 0 }
.text { position: sticky; top: 1rem; max-height: calc(100vh - 2rem); overflow: auto }
.wide { grid-column: 1 / -1 }
ol { list-style: none; margin: .7rem -.5rem 0; padding: 0 }
details { margin-top: .7rem; padding-top: .7rem; border-top: 1px solid var(--line) }
summary { color: var(--soft); font-size: .87rem; cursor: pointer; border-radius: .35rem }
button { display: grid; grid-template-columns: minmax(6rem, 9.5rem) 1fr 3rem; gap: 0 .8rem; align-items: center; width: 100%; padding: .32rem .5rem;
  border: 0; border-left: 3px solid transparent; border-radius: .35rem; background: none; color: inherit; font: inherit; text-align: start; cursor: pointer }
button:hover, button:focus-visible { background: var(--held) }
button[aria-pressed=true] { background: var(--held); border-left-color: var(--accent) }
button:focus-visible, summary:focus-visible, .scroll:focus-visible { outline: 2px solid var(--accent); outline-offset: -1px }
.token { font-weight: 650; overflow-wrap: anywhere }
code.token { font: 500 .85rem ui-monospace, Menlo, "DejaVu Sans Mono", monospace }
.rest { font-weight: 400; color: var(--soft) }
.bar { height: .6rem; border-radius: .3rem; background: var(--ground); overflow: hidden }
.bar i { display: block; height: 100% }
.score { text-align: end; font-variant-numeric: tabular-nums }
.found { grid-column: 1 / -1; color: var(--soft); font-size: .87rem; white-space: nowrap; overflow: hidden; text-overflow: ellipsis }
.found::before { content: "↳ " }
mark { background: none; color: var(--ink); font-weight: 650; text-decoration: underline 2px var(--accent); text-underline-offset: 3px }
#says { min-height: 2.6em; margin-bottom: .4rem }
#says.on { color: var(--ink) }
.running { font: 1.12rem/2 ui-serif, Charter, Georgia, "DejaVu Serif", serif; overflow-wrap: anywhere }
.piece { padding: .16em 0; border-radius: .15em }
.special { font: .78em ui-monospace, Menlo, "DejaVu Sans Mono", monospace }
.skipped { color: var(--soft) }
.answered { text-decoration: underline 2px var(--accent); text-underline-offset: 4px }
header > div { flex: 1 1 30rem }
sup { display: inline-block; font: 600 .6em system-ui, sans-serif; line-height: 0; padding-left: .1em; color: var(--accent) }
.on ~ .running sup { color: inherit }
.on ~ .running .answered { text-decoration: none }
.piece.answer { font-weight: 700; outline: 2px solid var(--accent); outline-offset: 1px; text-decoration: underline 2px !important }
.key { display: flex; gap: .7rem; align-items: center; margin-top: .8rem }
.swatches { display: inline-flex; border: 1px solid var(--line) }
.swatches span { width: 1.1rem; height: .7rem }
.scroll { overflow: auto; max-height: 80vh; margin-top: .7rem; border: 1px solid var(--line); border-radius: .4rem }
table { border-collapse: separate; border-spacing: 1px; font-size: .68rem; font-variant-numeric: tabular-nums }
thead th, thead td { position: sticky; top: 0; z-index: 1; background: var(--panel); vertical-align: bottom }
thead th span { writing-mode: vertical-rl; transform: rotate(180deg); max-height: 9rem; overflow: hidden; font-weight: 500; font-size: .75rem }
tbody th, thead td { position: sticky; left: 0; background: var(--panel) }
thead td { z-index: 2 }
tbody th { padding: 0 .6rem; text-align: end; font-weight: 500; font-size: .8rem; white-space: nowrap }
tbody td { min-width: 1.55rem; height: 1.45rem; text-align: center; color: var(--soft) }
td.best { outline: 2px solid var(--accent); outline-offset: -2px }
tr.on th { color: var(--accent); font-weight: 700 }
@media (max-width: 60rem) { main { grid-template-columns: minmax(0, 1fr) } .text { position: static; max-height: none; order: -1 } }
@media (prefers-reduced-motion: no-preference) { .piece { transition: background-color .12s } }
"""

SCRIPT = """
const buttons = [...document.querySelectorAll("button[data-row]")], rows = [...document.querySelectorAll("tbody tr")];
const pieces = [...document.querySelectorAll("[data-column]")], says = document.getElementById("says");
let held = null;
function show(place) {
  const row = place === null ? null : rows[place];
  rows.forEach(other => other.classList.toggle("on", other === row));
  for (const piece of pieces) {
    const cell = row && row.cells[Number(piece.dataset.column) + 1];
    piece.className = piece.className.replace(/ (s[0-9]|answer)(?= |$)/g, "") + (cell ? " " + cell.className.replace("best", "answer") : "");
    piece.title = cell && cell.textContent ? "similarity " + (Number(cell.textContent.replace("\\u2212", "-")) / 100).toFixed(2) : "";
  }
  says.textContent = row ? buttons[place].dataset.says : says.dataset.rest;
  says.classList.toggle("on", Boolean(row));
}
function hold(place) {
  held = place;
  buttons.forEach((button, other) => button.setAttribute("aria-pressed", String(other === place)));
  show(place);
}
buttons.forEach((button, place) => {
  button.addEventListener("pointerenter", () => show(place));
  button.addEventListener("pointerleave", () => show(held));
  button.addEventListener("focus", () => show(place));
  button.addEventListener("blur", () => show(held));
  button.addEventListener("click", () => hold(held === place ? null : place));
  button.addEventListener("keydown", event => {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (step && buttons[place + step]) { event.preventDefault(); buttons[place + step].focus(); }
  });
});
document.addEventListener("keydown", event => { if (event.key === "Escape") hold(null); });
show(null);
"""
