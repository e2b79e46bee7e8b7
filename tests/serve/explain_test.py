"""Explanations: the terms of MaxSim and who brought them, in the terminal and on a page that can be read, reached and trusted."""

import functools
import re
from html.parser import HTMLParser

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.data.collection import SyntheticCollection
from jaxrec.data.passages import Passages
from jaxrec.data.tokenizers import Frame, WordPiece, tokenize
from jaxrec.method import Vectors, bind
from jaxrec.methods.late_interaction.colbert import ColBERT
from jaxrec.methods.late_interaction.colberter import ColBERTer
from jaxrec.methods.late_interaction.kinyacolbert import KinyaColBERT
from jaxrec.nn.bert import BERT
from jaxrec.param import create
from jaxrec.serve.explain import bar, context_of, explain, explain_document, explanation, labels_of, words_of
from jaxrec.serve.explain_page import DARK, LIGHT, contrast, ink, levels
from jaxrec.serve.explain_page import page as page_of
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
    assert "(no token is compared)" in empty.text() and "no token of the document is compared" in page_of(empty)
    assert explanation(["a"], vectors(1, 0), [], vectors(0, 1)).total == -np.inf
    silent = explanation([], vectors(0, 0), ["x"], vectors(1, 1))
    assert silent.total == 0 and silent.text().endswith("0.000 from 0 query tokens\n") and "no tokens, so its score is 0" in page_of(silent)


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
    text = page_of(explained)
    assert "<script>alert" not in text and "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "&lt;b&gt;7&lt;/b&gt;: aspirin &amp; co" in text
    page = Page(text)
    assert len(page.all("script")) == 1 and not [attrs for _, attrs in page.elements if {"src", "href"} & attrs.keys()]
    assert "url(" not in text and "@import" not in text and not re.search(r"https?://", text)
    assert page.all("meta", content="default-src")
    quote = page_of(explanation(['"><img src=x onerror=alert(1)>'], vectors(1, 0), ['" onfocus="x'], vectors(1, 0)))
    assert not Page(quote).all("img") and not [attrs for _, attrs in Page(quote).elements if {"onerror", "onfocus"} & attrs.keys()]


def test_every_query_token_can_be_reached_and_says_its_answer(explained):
    page = Page(page_of(explained))
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
    page = Page(page_of(explained))
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


# Words of more than one piece, of which some occur again; "." is a mark that is left out, and so parts a word from what goes on after it.
MADE_OF = {"[PAD]": 0, "[CLS]": 1, "[SEP]": 2, "[MASK]": 3, "[unused0]": 4, "[unused1]": 5, ".": 6, "ba": 7, "ke": 8, "lu": 9, "##ke": 10, "##lu": 11}
TEXT = [1, 5, 7, 10, 8, 6, 7, 10, 11, 7, 10, 8, 2, 0]
WORDS = ["bake", "ke", ".", "bakelu", "bake", "ke"]


@pytest.fixture(scope="module")
def of_words():
    """(ColBERTer, KinyaColBERT), their tokenizer and frame."""
    from tokenizers import Tokenizer, models

    tokenizer = Tokenizer(models.WordPiece(MADE_OF, unk_token="[MASK]"))  # pyright: ignore[reportCallIssue]
    small = BERT(vocabulary=12, length=14, dim=16, layers=1, heads=2, hidden=16, types=1)
    common = {"encoder": small, "dim": 8, "pad": 0, "mask_token": 3, "punctuation": (6,), "continues": (10, 11)}
    two_tier = KinyaColBERT(**common, morphology=BERT(vocabulary=12, length=14, dim=4, layers=1, heads=2, hidden=8, types=1))
    return (ColBERTer(**common, whole=4), two_tier), tokenizer, Frame(query=(1, 4), document=(1, 5), end=2, pad=0)


def explained_words(of_words, which, query, document, bias=None):
    """(explanation, score by the method's own MaxSim)."""
    methods, tokenizer, frame = of_words
    method = methods[which]
    params = jax.jit(lambda: create(method.spec(), jax.random.key(1)))()
    if bias is not None:
        params = params.replace(gate=params.gate.replace(bias=jnp.full(1, bias)))
    asked, found = np.array(query, np.int32), np.array(document, np.int32)
    return explain(method, params, asked, found, tokenizer=tokenizer, frame=frame), float(scored(method, params, asked[None], found[None])[0, 0])


@functools.partial(jax.jit, static_argnums=0)
def scored(method, params, query, document):
    queries, documents = method.encode_query(params, {"query": query}), method.encode_item(params, {"document": document})
    return maxsim(queries.values, documents.values, queries.mask, documents.mask)


def test_words_are_explained_whole(of_words):
    found, score = explained_words(of_words, 0, [1, 4, 9, 7, 10, 9, 2, 0], TEXT)
    assert found.query == ("[CLS]", "lu", "bake")  # each word once, wherever it stands
    assert found.document == ("[CLS]", "[D]", *WORDS, "[SEP]")
    assert found.compared.tolist() == [True, False, True, True, False, True, True, True, False]
    assert found.total == pytest.approx(score, abs=1e-5)
    np.testing.assert_array_equal(found.similarity[:, 2], found.similarity[:, 6])  # both are "bake"
    assert np.isfinite(found.similarity[0]).tolist() == [True] + [False] * 8 and found.answers[0] == 0  # the whole text meets the whole text alone
    assert not np.isfinite(found.similarity[1:, 0]).any() and (found.answers[1:] > 1).all() and 6 not in found.answers
    page = Page(page_of(found))
    numbers = [text for path, text in page.texts if "tbody" in path and "td" in path]
    assert len(numbers) == np.isfinite(found.similarity).sum() and "«" not in page.words("tbody")
    assert "[CLS]" in found.text(100) and words_of(found.document) == "bake ke. bakelu bake ke"


@pytest.mark.parametrize(("document", "bias"), [([1, 5, 6, 2], None), (TEXT, -100.0)])
def test_a_document_without_words_is_compared_by_none(of_words, document, bias):
    found, score = explained_words(of_words, 0, [1, 4, 9, 2], document, bias)
    assert found.document[:3] == ("[no word]", "[CLS]", "[D]") and found.compared[:3].tolist() == [True, True, False] and not found.compared[3:].any()
    assert found.total == pytest.approx(score, abs=1e-5) and found.scores[1] == 0


def test_words_of_two_tiers_have_their_own_labels(of_words):
    found, score = explained_words(of_words, 1, [1, 4, 9, 7, 10, 9, 2, 0], TEXT)
    assert found.query == ("[CLS]", "[Q]", "lu", "bake", "lu", "[SEP]")
    assert found.document == ("[CLS]", "[D]", *WORDS, "[SEP]")
    assert found.compared.tolist() == [token != "." for token in found.document]
    assert found.total == pytest.approx(score, abs=1e-5)


def test_a_system_that_merges_tokens_is_refused(trained):
    _, _, data = trained

    class Whole:
        def encode_query(self, params, batch):
            return Vectors(jnp.ones((1, 1, 4)), jnp.ones((1, 1), bool))

        encode_item = encode_query

    pieces = np.arange(5, dtype=np.int32)
    with pytest.raises(ValueError, match="Whole gives 1 vectors for the 5 word pieces of a query; only one for each can be explained"):
        explain(Whole(), {}, pieces, pieces, tokenizer=data.tokenizer.get())
