"""Search metrics: by hand, against trec_eval itself, and what is refused."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from jaxrec.data.collection import Collection, Qrels, Queries
from jaxrec.evals import search
from jaxrec.evals.search import Run, evaluate


def collection(judgements: list[tuple[int, int, int]], *, documents: int, queries: int) -> Collection:
    """Documents d0, d1 ..., test queries q0, q1 ..., and judgements (query, document, grade)."""
    query, document, grade = np.array(judgements).T
    qrels = Qrels.gather(query, document, grade, count=queries)
    asked = Queries([f"q{q}" for q in range(queries)], ["?"] * queries)
    names = [f"d{d}" for d in range(documents)]
    return Collection(names, [""] * documents, [""] * documents, {"test": asked}, {"test": qrels})


def noisy(*, documents: int, queries: int, seed: int) -> tuple[Collection, Run]:
    """Random grades -1..3 of some pairs, and a run of random length per query whose scores are distinct within it."""
    random = np.random.default_rng(seed)
    judgements = [(q, int(d), int(random.integers(-1, 4))) for q in range(queries) for d in random.permutation(documents)[: random.integers(1, 20)]]
    found = [(q, d) for q in range(queries) for d in random.permutation(documents)[: random.integers(0, documents)]]
    query, document = np.array(found).T
    return collection(judgements, documents=documents, queries=queries), Run(query, document, random.permutation(len(found)) / 64)


def test_metrics_by_hand():
    judged = collection([(0, 3, 2), (0, 1, 1), (0, 0, 0), (1, 2, 1), (2, 0, 0), (2, 1, -1)], documents=4, queries=4)
    ids = np.array([[0, 3, 2, 1], [3, 0, 1, -1], [0, 1, 2, 3], [0, 1, 2, 3]])
    result = evaluate(ids, judged, "test")
    assert result.query.tolist() == [0, 1] and result.left_out == 2  # judged irrelevant, not judged at all
    ideal = 2 + 1 / math.log2(3)
    expected = {
        "nDCG@10": [(2 / math.log2(3) + 1 / math.log2(5)) / ideal, 0],
        "MRR@10": [1 / 2, 0],
        "Recall@10": [1, 0],
        "Recall@100": [1, 0],
        "Success@5": [1, 0],
        "mAP": [(1 / 2 + 2 / 4) / 2, 0],
    }
    assert result.values.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(result.values[name], values, rtol=1e-12, err_msg=name)
    assert result.mean()["MRR@10"] == 1 / 4


def test_one_relevant_document_orders_the_metrics():
    documents = 150
    judged = collection([(q, (q * 37) % documents, 1) for q in range(40)], documents=documents, queries=40)
    random = np.random.default_rng(0)
    values = evaluate(np.stack([random.permutation(documents)[:100] for _ in range(40)]), judged, "test").values
    assert (values["MRR@10"] <= values["nDCG@10"]).all() and (values["nDCG@10"] <= values["Recall@10"]).all()
    assert (values["Success@5"] <= values["Recall@10"]).all() and (values["Recall@10"] <= values["Recall@100"]).all()
    assert values["Recall@100"].any() and not values["Recall@100"].all()


@pytest.mark.parametrize("seed", range(3))
def test_metrics_are_those_of_trec_eval(seed: int):
    measures = pytest.importorskip("ir_measures")
    pytest.importorskip("pytrec_eval")
    judged, run = noisy(documents=130, queries=40, seed=seed)
    ids = run.lists(40, 130)
    qrels = judged.qrels["test"]
    truth = [measures.Qrel(f"q{q}", f"d{d}", int(g)) for q, d, g in zip(qrels.queries, qrels.documents, qrels.grades, strict=True)]
    lines = [measures.ScoredDoc(f"q{q}", f"d{d}", float(s)) for q, d, s in zip(run.query, run.document, run.score, strict=True)]
    first = [line for line in lines if int(line.doc_id[1:]) in ids[int(line.query_id[1:]), :10]]  # trec_eval cuts reciprocal ranks by its option -M only
    names = {
        "nDCG@10": measures.nDCG @ 10,
        "MRR@10": measures.RR,
        "Recall@10": measures.R @ 10,
        "Recall@100": measures.R @ 100,
        "Success@5": measures.Success @ 5,
        "mAP": measures.AP,
    }
    result = evaluate(ids, judged, "test")
    assert len(result.query) > 30
    for name, measure in names.items():
        theirs = {value.query_id: value.value for value in measures.pytrec_eval.iter_calc([measure], truth, first if name == "MRR@10" else lines)}
        expected = [theirs.get(f"q{q}", 0.0) for q in result.query]  # it skips queries for which the run found nothing
        np.testing.assert_allclose(result.values[name], expected, atol=1e-6, err_msg=name)
        assert 0.01 < np.mean(expected) < 0.99  # neither all 0 nor all 1, which would prove nothing


def test_lists_are_ordered_by_score_then_row_and_padded():
    run = Run(np.array([1, 0, 1, 1, 0]), np.array([5, 2, 3, 4, 7]), np.array([1.0, 0.5, 2.0, 1.0, np.inf]))
    np.testing.assert_array_equal(run.lists(3, 2), [[7, 2], [3, 4], [-1, -1]])
    np.testing.assert_array_equal(run.lists(2, 4), [[7, 2, -1, -1], [3, 4, 5, -1]])
    random = np.random.default_rng(0).permutation(5)
    np.testing.assert_array_equal(Run(run.query[random], run.document[random], run.score[random]).lists(2, 4), run.lists(2, 4))


def test_an_answer_becomes_a_run_and_back():
    ids, scores = np.array([[3, 1, -1], [0, 2, 1]]), np.array([[2.0, 1.0, -np.inf], [1.0, 1.0, 0.5]])
    run = Run.of(ids, scores)
    assert len(run.query) == 5
    np.testing.assert_array_equal(run.lists(2, 3), ids)


def test_documents_that_are_the_query_itself_can_be_left_out():
    judged = collection([(0, 1, 1)], documents=3, queries=2)
    named = Collection(["q1", "x", "q0"], judged.titles, judged.texts, judged.queries, judged.qrels)
    run = Run.of(np.array([[2, 0, 1], [2, 0, 1]]), np.array([[3.0, 2.0, 1.0]] * 2)).without_own(named, "test")
    np.testing.assert_array_equal(run.lists(2, 3), [[0, 1, -1], [2, 1, -1]])


def test_trec_files_keep_the_order():
    judged = collection([(0, 1, 1)], documents=3, queries=2)
    text = Run.of(np.array([[2, 0], [1, -1]]), np.array([[1.0, 1.0], [5.0, -np.inf]])).trec(judged, "test", tag="bm25")
    assert text == "q0 Q0 d0 1 -1 bm25\nq0 Q0 d2 2 -2 bm25\nq1 Q0 d1 1 -1 bm25\n"


def test_intervals_hold_the_mean_and_narrow_with_queries():
    def width(queries: int) -> float:
        judged = collection([(q, q % 2, 1) for q in range(queries)], documents=2, queries=queries)
        interval = evaluate(np.tile([0, 1], (queries, 1)), judged, "test").intervals()["MRR@10"]
        assert interval.low < interval.mean == 0.75 < interval.high
        return interval.high - interval.low

    # The standard error of a mean of n values that are 1 or 1/2 with equal chance is 1 / (4 sqrt n); the interval is 2 * 1.96 of it.
    assert width(64) == pytest.approx(2 * 1.96 / 32, rel=0.15)
    assert width(1024) == pytest.approx(2 * 1.96 / 128, rel=0.15)


def test_the_macro_average_counts_collections_not_queries():
    easy = evaluate(np.array([[0, 1]]), collection([(0, 0, 1)], documents=2, queries=1), "test")
    hard = evaluate(np.array([[0, 1]] * 3), collection([(0, 1, 1), (1, 1, 1), (2, 1, 1)], documents=2, queries=3), "test")
    assert search.macro_average([easy, hard])["MRR@10"] == search.macro_average([hard, easy])["MRR@10"] == 0.75
    with pytest.raises(ValueError, match="no data set to average over"):
        search.macro_average([])


def test_the_table_shows_systems_side_by_side():
    judged = collection([(0, 0, 1), (1, 0, 1), (2, 1, 0)], documents=2, queries=3)
    systems = {"good": evaluate(np.array([[0, 1]] * 3), judged, "test"), "bad": evaluate(np.array([[1, 0]] * 3), judged, "test")}
    heading, columns, good, bad = search.table(systems).splitlines()
    assert heading == "2 queries (1 left out: no relevant document)"
    assert columns.split() == ["system", *search.METRICS]
    assert good.split()[:3] == ["good", "1.0000±0.0000*", "1.0000±0.0000*"] and bad.split()[2] == "0.5000±0.0000"
    rows = json.loads(json.dumps(search.to_json(systems)))
    assert rows["bad"]["queries"] == 2 and rows["bad"]["left_out"] == 1
    assert rows["bad"]["metrics"]["MRR@10"] == {"mean": 0.5, "low": 0.5, "high": 0.5}
    other = evaluate(np.array([[0, 1]] * 3), collection([(2, 0, 1)], documents=2, queries=3), "test")
    with pytest.raises(ValueError, match="good and other were asked different queries"):
        search.table({**systems, "other": other})
    with pytest.raises(ValueError, match="no system to show"):
        search.table({})


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (np.zeros((1, 3), int), r"lists must be integers of shape \[2, 3 or more\], got int64 of shape \[1, 3\]; search with k=3"),
        (np.zeros((2, 2), int), r"got int64 of shape \[2, 2\]; search with k=3"),
        (np.zeros((2, 3)), r"got float64 of shape \[2, 3\]"),
        (np.array([[0, 1, 3], [0, 1, 2]]), r"lists name documents 0\.\.3; there are rows 0 to 2, and -1 for nothing"),
        (np.array([[0, 1, 2], [0, 1, -2]]), r"lists name documents -2\.\.2"),
        (np.array([[0, 1, 2], [-1, 1, 1]]), r"the list of query 1 holds document 1 twice"),
    ],
)
def test_bad_lists_are_refused(ids: np.ndarray, message: str):
    with pytest.raises(ValueError, match=message):
        evaluate(ids, collection([(0, 0, 1)], documents=3, queries=2), "test")


def test_other_errors_name_the_value_and_the_fix():
    judged = collection([(0, 0, 0)], documents=1, queries=1)
    with pytest.raises(ValueError, match="none of the 1 test queries has a relevant document; there is nothing to measure"):
        evaluate(np.array([[0]]), judged, "test")
    with pytest.raises(ValueError, match="no split 'dev'; the collection has test"):
        evaluate(np.array([[0]]), judged, "dev")
    with pytest.raises(ValueError, match="a run has 1 queries, 2 documents and 1 scores"):
        Run(np.zeros(1, int), np.zeros(2, int), np.zeros(1))
    with pytest.raises(ValueError, match="line 1 of the run, query 3, has score NaN"):
        Run(np.array([0, 3]), np.zeros(2, int), np.array([0.0, np.nan]))
