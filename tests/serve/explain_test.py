"""Explanations: the terms of MaxSim and who brought them, in the terminal and on a page that can be read, reached and trusted."""

import re
from html.parser import HTMLParser

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.data.collection import SyntheticCollection
from jaxrec.data.passages import Passages
from jaxrec.data.tokenizers import WordPiece, tokenize
from jaxrec.method import Vectors, bind
from jaxrec.methods.late_interaction.colbert import ColBERT
from jaxrec.nn.bert import BERT
from jaxrec.param import create
from jaxrec.serve.explain import bar, context_of, explain, explain_document, explanation, labels_of, words_of
from jaxrec.serve.explain_page import DARK, LIGHT, contrast, ink, levels
from kernels.maxsim import maxsim

QUERY = ["[CLS]", "[Q]", "as", "##pir", "##in", "dose", "[SEP]", "[MASK]", "[MASK]"]
DOCUMENT = ["[CLS]", "[D]", "low", "-", "dose", "as", "##pir", "##in", "(", "0", ".", "5", "mg", ")", ",", "daily", "<script>alert(1)</script>", "[SEP]"]
COMPARED = np.array([token not in "-(.)," for token in DOCUMENT])


def vectors(count, seed):
    """[count, 8] of length 1."""
    values = np.random.default_rng(seed).normal(size=(count, 8)).astype(np.float32)
    return values / np.linalg.norm(values, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def explained():
    return explanation(QUERY, vectors(len(QUERY), 0), DOCUMENT, vectors(len(DOCUMENT), 1), compared=COMPARED, name="<b>7</b>: aspirin & co")


class Page(HTMLParser):
    """Every element with its attributes, the texts of chosen elements, and whether all are closed."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.open, self.texts = [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append((tuple(self.open), data))

    def all(self, tag, **wanted):
        return [attrs for name, attrs in self.elements if name == tag and all(value in (attrs.get(key) or "").split() for key, value in wanted.items())]

    def words(self, *within):
        return "".join(text for path, text in self.texts if all(tag in path for tag in within))


def test_answers_and_total_are_those_of_maxsim(explained):
    queries, documents = vectors(len(QUERY), 0), vectors(len(DOCUMENT), 1)
    similarity = queries @ documents.T
    kept = np.flatnonzero(COMPARED)
    wanted = kept[similarity[:, kept].argmax(axis=1)]
    np.testing.assert_array_equal(explained.answers, wanted)
    np.testing.assert_allclose(explained.scores, similarity[np.arange(len(QUERY)), wanted], atol=1e-6)
    scored = maxsim(*map(jnp.asarray, (queries[None], documents[None])), None, jnp.asarray(COMPARED)[None])
    assert explained.total == pytest.approx(float(scored[0, 0]), abs=1e-5)
    assert explained.expansion == pytest.approx(float(explained.scores[7:].sum()), abs=1e-6)


def test_equal_tokens_are_answered_by_the_first():
    same = np.ones((3, 2), np.float32)
    assert explanation(["a"], same[:1], ["x", "y", "z"], same, compared=np.array([False, True, True])).answers.tolist() == [1]


def test_nothing_to_compare_has_the_score_of_maxsim():
    empty = explanation(["a", "[MASK]"], vectors(2, 0), ["."], vectors(1, 1), compared=np.array([False]))
    assert empty.total == -np.inf and empty.answers.tolist() == [-1, -1]
    assert "(no token is compared)" in empty.text() and "no token of the document is compared" in empty.html()
    assert explanation(["a"], vectors(1, 0), [], vectors(0, 1)).total == -np.inf
    silent = explanation([], vectors(0, 0), ["x"], vectors(1, 1))
    assert silent.total == 0 and silent.text().endswith("0.000 from 0 query tokens\n") and "no tokens, so its score is 0" in silent.html()


def test_what_does_not_go_together_is_told():
    one, two = vectors(1, 0), vectors(2, 0)
    for arguments, options, message in (
        ((["a"], two, ["x"], one), {}, r"1 query tokens have vectors of shape \(2, 8\); give one vector per token, \[1, D\]"),
        ((["a"], one, ["x"], one[0]), {}, r"1 document tokens have vectors of shape \(8,\)"),
        ((["a"], one, ["x"], one[:, :4]), {}, "query vectors have 8 dimensions, document vectors 4"),
        ((["a"], one, ["x", "y"], two), {"compared": np.array([True])}, r"compared has shape \(1,\), and there are 2 document tokens"),
        ((["a"], one, ["x", "y"], np.where([[False], [True]], np.nan, two)), {}, "the vector of document token 1, 'y', is not finite"),
        ((["a"], one * np.inf, ["x"], one), {}, "the vector of query token 0, 'a', is not finite"),
    ):
        with pytest.raises(ValueError, match=message):
            explanation(*arguments, **options)
    hidden = np.where([[False], [True]], np.nan, two)  # what is not compared may hold anything
    assert np.isfinite(explanation(["a"], one, ["x", "y"], hidden, compared=np.array([True, False])).total)


def test_pieces_are_glued_to_their_words():
    assert words_of(DOCUMENT[:-2]) == "low-dose aspirin (0.5 mg), daily"
    assert words_of(["##in", "a", "##b", "[SEP]", "##c", "##", "3", ",", "500", ",", "x"]) == "in abc ## 3,500, x"
    assert labels_of(QUERY)[2:6] == ["«as»pirin", "as«pir»in", "aspir«in»", "dose"]
    assert context_of(DOCUMENT, 6) == ("[CLS] [D] low-dose as", "pir", "in (0.5 mg), daily …")
    assert context_of(DOCUMENT, 0) == ("", "[CLS]", " [D] low-dose aspirin …")
    assert context_of(DOCUMENT, 17) == ("… mg), daily <script>alert(1)</script> ", "[SEP]", "")
    assert context_of(["x"], 0) == ("", "x", "")


def test_the_terminal_gets_one_line_for_each_query_token(explained):
    head, lines = explained.text(100).split("\n\n")
    assert head.splitlines()[0] == "query     aspirin dose"
    assert "from 7 tokens of the query +" in head and "from 2 [MASK]" in head
    lines = lines.splitlines()
    assert len(lines) == len(QUERY) and all(len(line) <= 100 for line in lines)
    for line, label, score, answer in zip(lines, labels_of(QUERY), explained.scores, explained.answers, strict=True):
        assert line.startswith(label) and f"{score:.3f}" in line
        assert f"«{context_of(DOCUMENT, int(answer))[1]}»" in line
    longest = [line.count("█") for line in lines]
    assert np.argmax(longest) == np.argmax(explained.scores) and max(longest) == 16
    assert bar(0.5, 4) == "██  " and bar(1 / 32 + 0.25, 4) == "█▏  " and bar(-1.0, 3) == "   " and bar(9.0, 2) == "██"


def test_the_terminal_is_not_steered_and_wide_letters_keep_the_columns():
    text = explanation(["\x1b[31mred", "日本"], vectors(2, 0), ["a\nb", "c"], vectors(2, 0)).text(80)
    assert "\x1b" not in text and "\ufffd[31mred" in text
    *_, red, japan = text.splitlines()
    assert japan.index("█") == red.index("█") - 2  # two letters fill four columns
    narrow = explanation(["a"], vectors(1, 0), ["word"] * 40, vectors(40, 1)).text(50)
    assert len(narrow.splitlines()[-1]) <= 50 and "«word»" in narrow


def test_the_page_escapes_everything_and_fetches_nothing(explained):
    text = explained.html()
    assert "<script>alert" not in text and "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "&lt;b&gt;7&lt;/b&gt;: aspirin &amp; co" in text
    page = Page(text)
    assert len(page.all("script")) == 1 and not [attrs for _, attrs in page.elements if {"src", "href"} & attrs.keys()]
    assert "url(" not in text and "@import" not in text and not re.search(r"https?://", text)
    assert page.all("meta", content="default-src")
    quote = explanation(['"><img src=x onerror=alert(1)>'], vectors(1, 0), ['" onfocus="x'], vectors(1, 0)).html()
    assert not Page(quote).all("img") and not [attrs for _, attrs in Page(quote).elements if {"onerror", "onfocus"} & attrs.keys()]


def test_every_query_token_can_be_reached_and_says_its_answer(explained):
    page = Page(explained.html())
    buttons = page.all("button")
    assert [int(attrs["data-row"]) for attrs in buttons] == list(range(len(QUERY)))  # a button is in the order of the keyboard
    for attrs, score, answer in zip(buttons, explained.scores, explained.answers, strict=True):
        assert attrs["aria-pressed"] == "false" and f"with {score:.2f}" in attrs["data-says"] and labels_of(DOCUMENT)[answer] in attrs["data-says"]
    assert page.all("div", tabindex="0", role="region") and page.all("p", role="status")
    assert page.words("h1") == "aspirin dose"
    assert [text for path, text in page.texts if path[-1:] == ("summary",)] == [f"Query expansion: 2 [MASK] tokens bring {explained.expansion:.2f}"]
    widths = [float(attrs["style"].removeprefix("width:").removesuffix("%")) for attrs in page.all("i")]
    np.testing.assert_allclose(widths, 100 * np.clip(explained.scores, 0, None) / explained.scores.max(), atol=0.06)


def test_the_document_is_real_text_with_a_column_for_each_compared_token(explained):
    page = Page(explained.html())
    pieces = page.all("span", **{"class": "piece"})
    assert len(pieces) == len(DOCUMENT)
    columns = [int(attrs["data-column"]) for attrs in pieces if "data-column" in attrs]
    assert columns == list(range(COMPARED.sum()))
    assert [("data-column" in attrs) for attrs in pieces] == COMPARED.tolist() == ["skipped" not in attrs["class"].split() for attrs in pieces]
    answered = {place for place, attrs in enumerate(pieces) if "answered" in attrs["class"].split()}
    assert answered == set(explained.answers.tolist())
    assert len(page.all("td")) == 1 + len(QUERY) * COMPARED.sum() and len(page.all("td", **{"class": "best"})) == len(QUERY)
    numbers = [text for path, text in page.texts if "tbody" in path and "td" in path]
    assert [int(number.replace("−", "-")) for number in numbers] == (100 * explained.similarity[:, COMPARED]).round().astype(int).ravel().tolist()
    assert "−0" not in numbers


def test_colours_rise_with_similarity_and_can_be_read():
    level = levels(np.array([[0.0, 0.1, 0.2, 0.3, 0.9, -np.inf]]))
    assert level.tolist() == [[0, 0, 0, 0, 9, 0]]
    assert (np.diff(levels(np.linspace(-1, 1, 200)[None])) >= 0).all()
    for ground, colours in (("#ffffff", LIGHT), ("#1a1d21", DARK)):
        assert colours[0] == ground
        apart = [contrast(ground, colour) for colour in colours]
        assert apart == sorted(apart) and apart[-1] > 7
        assert all(contrast(colour, ink(colour)) >= 4.5 for colour in colours)
    assert contrast("#000000", "#ffffff") == pytest.approx(21)


SOURCE = SyntheticCollection(documents=12, queries=4)


@pytest.fixture(scope="module")
def trained():
    data = Passages(SOURCE, WordPiece(SOURCE, size=256), batch=4, query_length=10, document_length=24)
    method = bind(ColBERT(encoder=BERT(vocabulary=-1, length=24, dim=16, layers=1, heads=2, hidden=16, types=1), dim=8), data.info())
    return method, create(method.spec(), jax.random.key(0)), data


def test_a_document_is_explained_by_its_id(trained):
    method, params, data = trained
    found = explain_document(method, params, data, "bakelu fi", "document-3")
    tokenizer = data.tokenizer.get()
    asked, _ = tokenize(tokenizer, ["bakelu fi"], 10, "query")
    queries, documents = jax.jit(
        lambda params, query, document: (method.encode_query(params, {"query": query}), method.encode_item(params, {"document": document}))
    )(params, asked, np.asarray(data.tokens()["documents"][3:4]))
    scored = maxsim(queries.values, documents.values, queries.mask, documents.mask)
    assert found.total == pytest.approx(float(scored[0, 0]), abs=1e-5)
    assert len(found.query) == 10 and found.query[:2] == ("[CLS]", "[Q]") and found.query[-1] == "[MASK]"
    assert found.document[:2] == ("[CLS]", "[D]") and "[PAD]" not in found.document and found.name == "document-3"
    assert words_of(found.query) == "bakelu fi"
    with pytest.raises(ValueError, match=r"there is no document 'document-33'; ids are like document-3"):
        explain_document(method, params, data, "bakelu", "document-33")
    with pytest.raises(ValueError, match="the query has no text"):
        explain_document(method, params, data, " ", "document-3")


def test_a_query_without_augmentation_has_its_own_tokens_only(trained):
    method, params, data = trained
    plain = ColBERT(**{**method.__dict__, "augment": False})
    found = explain_document(plain, params, data, "bakelu fi", "document-3")
    assert found.query[-1] == "[SEP]" and "[MASK]" not in found.query and found.expansion == 0


def test_a_system_that_merges_tokens_is_refused(trained):
    _, _, data = trained

    class Whole:
        def encode_query(self, params, batch):
            return Vectors(jnp.ones((1, 1, 4)), jnp.ones((1, 1), bool))

        encode_item = encode_query

    pieces = np.arange(5, dtype=np.int32)
    with pytest.raises(ValueError, match="Whole gives 1 vectors for the 5 word pieces of a query; only one for each can be explained"):
        explain(Whole(), {}, pieces, pieces, tokenizer=data.tokenizer.get())
