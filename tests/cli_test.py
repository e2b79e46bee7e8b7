"""The command line: what is wrong with the input ends with one message and exit code 2; what is right prints JSON."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from jaxrec.cli import main
from jaxrec.commands.serving import _times
from jaxrec.experiment import Experiment
from jaxrec.interop import safetensors_files
from jaxrec.nn import language_families
from jaxrec.nn.language_model import LanguageModel
from jaxrec.param import create

FILE = """
from jaxrec.data.builders.synthetic import Synthetic
from jaxrec.data.sequences import Sequences
from jaxrec.experiment import Experiment
from jaxrec.methods.sequential.sasrec import SASRec

experiment = Experiment(
    method=SASRec(dim=16, layers=1, dropout=0.0, negatives=8),
    data=Sequences(Synthetic(users=64, items=50), batch=8, length=8, row=24),
    steps=2,
)
"""


@pytest.fixture
def experiment(tmp_path):
    path = tmp_path / "small.py"
    path.write_text(FILE)
    return str(path)


def refused(capsys, *arguments):
    """What a command that fails with exit code 2 says."""
    with pytest.raises(SystemExit) as stopped:
        main(list(arguments))
    assert stopped.value.code == 2
    printed = capsys.readouterr()
    assert "Traceback" not in printed.err + printed.out
    return " ".join((printed.err + printed.out).replace("│", " ").split())  # tyro wraps its messages


def test_a_missing_file_names_the_nearest_one(capsys, experiment, tmp_path):
    said = refused(capsys, "train", str(tmp_path / "smal.py"))
    assert said.startswith("jaxrec train: no experiment file") and "did you mean" in said and "small.py?" in said


def test_an_unknown_field_names_the_nearest_one(capsys, experiment):
    said = refused(capsys, "train", experiment, "--method.dimm", "32")
    assert "--method.dimm" in said and "--method.dim" in said.replace("--method.dimm", "")


def test_a_value_of_another_type_is_named(capsys, experiment):
    said = refused(capsys, "train", experiment, "--method.dim", "wide")
    assert "--method.dim" in said and "wide" in said


def test_a_value_out_of_range_is_explained(capsys, experiment):
    assert "a batch of 8 rows does not divide into accumulate=3 microbatches" in refused(capsys, "train", experiment, "--accumulate", "3")


def test_a_sweep_that_is_none_is_explained(capsys, experiment):
    assert "--sweep 'method.dim' should look like method.dim=64,128" in refused(capsys, "train", experiment, "--sweep", "method.dim")


def test_a_sweep_with_a_value_that_cannot_be_trains_nothing(capsys, experiment, tmp_path):
    arguments = ("train", experiment, "--workdir", str(tmp_path / "run"), "--sweep")
    assert "abc" in refused(capsys, *arguments, "method.dim=16,abc")
    assert "heads=3 does not divide dim=16" in refused(capsys, *arguments, "method.heads=1,3")
    (tmp_path / "table.py").write_text(
        FILE.replace("data.builders.synthetic import Synthetic", "data.builders.table import Table").replace("Synthetic(users=64, items=50)", "Table('')")
    )
    (tmp_path / "my.csv").write_text("user,item,time\n" + "".join(f"{user},{item},{item}\n" for user in range(8) for item in range(5)))
    source = f"data.source.path={tmp_path / 'my.csv'},{tmp_path / 'zz.csv'}"
    said = refused(capsys, "train", str(tmp_path / "table.py"), *arguments[2:], source)
    assert "zz.csv does not exist" in said and "===" not in said
    assert not (tmp_path / "run").exists()


def test_commands_say_what_must_come_first(capsys, experiment, tmp_path):
    said = refused(capsys, "compare", str(tmp_path / "one"), str(tmp_path / "two"))
    assert "ranks_test.npz does not exist; evaluate the run first: jaxrec eval experiments/one.py --split test" in said
    assert f"there is no run in {tmp_path / 'run'}; train first: jaxrec train experiments/small.py" in refused(
        capsys, "eval", experiment, "--workdir", str(tmp_path / "run")
    )
    assert "is no bundle" in (said := refused(capsys, "query", str(tmp_path / "bundle"), "--history", "a")) and "jaxrec export" in said


def test_unknown_names_are_listed(capsys):
    said = refused(capsys, "data", "info", "zzz")
    assert "no data set 'zzz'; there are python_api, amazon_beauty" in said
    assert "no data set 'amazon_beuty'; did you mean 'amazon_beauty'? There are python_api" in refused(capsys, "data", "info", "amazon_beuty")
    assert "needs a NAME; `jaxrec data ls` lists them" in refused(capsys, "data", "info")
    assert "invalid choice: 'trian'" in refused(capsys, "trian")
    assert "unrecognized arguments: --dim 3" in refused(capsys, "data", "ls", "--dim", "3")


def test_traceback_shows_where_an_error_arose(capsys, experiment, tmp_path):
    with pytest.raises(ValueError, match="should look like"):
        main(["train", experiment, "--sweep", "x", "--traceback"])
    (tmp_path / "wrong.py").write_text(FILE.replace("SASRec(dim", "SASRec(dimm"))
    assert "wrong.py:8: TypeError" in (said := refused(capsys, "train", str(tmp_path / "wrong.py"))) and said.endswith("Did you mean 'dim'?")
    with pytest.raises(ValueError) as raised:
        main(["train", str(tmp_path / "wrong.py"), "--traceback"])
    assert isinstance(raised.value.__cause__, TypeError)


def test_times_that_are_no_numbers_are_explained():
    assert _times("1, 2.5") == [1, 2.5]
    with pytest.raises(ValueError, match=r"^--times 1,x: could not convert string to float: 'x'; give seconds since 1970, one for each item of --history"):
        _times("1,x")


def test_a_bug_is_not_taken_for_bad_input(experiment, monkeypatch):
    monkeypatch.setattr(Experiment, "resolve", lambda self: {}["missing"])
    with pytest.raises(KeyError):
        main(["train", experiment])


def test_help_of_a_command_needs_no_file(capsys):
    main(["train", "--help"])
    assert "--sweep PATH=VALUE,VALUE" in capsys.readouterr().out


def test_data_lists_every_set(capsys):
    main(["data", "ls"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["name", "kind", "state", "what"]
    kinds = {line.split()[0]: line.split()[1] for line in lines[1:]}
    assert (kinds["synthetic"], kinds["python_docs"], kinds["tiny_shakespeare"]) == ("interactions", "documents", "text")


def test_data_info_is_json(capsys):
    main(["data", "info", "synthetic"])
    info = json.loads(capsys.readouterr().out)
    assert (info["users"], info["items"]) == (1000, 200) and len(info["first_histories"]) == 3


def test_data_info_of_documents_and_of_text(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("JAXREC_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("JAXREC_CACHE", str(tmp_path / "cache"))
    lines = {
        "scifact/corpus.jsonl": ['{"_id": "a", "title": "Cells", "text": "divide in two"}', '{"_id": "b", "text": "nothing"}'],
        "scifact/queries.jsonl": ['{"_id": "1", "text": "do cells divide"}'],
        "scifact/qrels/test.tsv": ["1\ta\t1"],
        "tinyshakespeare/input.txt.gz": ["To be, or not to be: that is the question." * 20],
    }
    for name, text in lines.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("\n".join(text) + "\n")
    main(["data", "info", "scifact"])
    info = json.loads(capsys.readouterr().out)
    assert (info["documents"], info["queries"], info["judgements"], info["words"]["longest"]) == (2, {"test": 1}, {"test": 1}, 4)
    main(["data", "info", "tiny_shakespeare"])
    assert json.loads(capsys.readouterr().out)["begins"].startswith("To be, or not")
    assert "scifact has no items with interactions; those that have are python_api" in refused(capsys, "data", "sids", "scifact")


SIDS = """
from jaxrec.data.builders.synthetic import Synthetic
from jaxrec.data.features import RandomVectors
from jaxrec.data.sequences import Sequences
from jaxrec.experiment import Experiment
from jaxrec.methods.generative.tiger_decoder import TIGERDecoder
from jaxrec.stages.quantizers import ResidualKMeans
from jaxrec.stages.semantic_ids import SemanticIds
from jaxrec.stages.sid_trie import SidTrie

source = Synthetic(users=64, items=50)
sids = SemanticIds(RandomVectors(source, 8), ResidualKMeans(levels=2, codes=4))
experiment = Experiment(TIGERDecoder(), Sequences(source, batch=8, form="stream", columns=(SidTrie(sids),)), steps=2)
"""


def test_data_sids_reports_draws_and_looks_up_both_ways(capsys, tmp_path):
    path = tmp_path / "small_sids.py"
    path.write_text(SIDS)
    main(["data", "sids", str(path), "--plot", str(tmp_path / "tree.png")])
    said = capsys.readouterr().out
    assert "50" in said and (tmp_path / "tree.png").read_bytes()[1:4] == b"PNG"
    main(["data", "sids", str(path), "--item", "item-7"])
    codes = capsys.readouterr().out.split()
    assert len(codes) == 3 and all(code.isdigit() for code in codes)
    main(["data", "sids", str(path), "--prefix", ",".join(codes[:2])])
    listed = capsys.readouterr().out
    assert listed.strip()
    assert "has no item 'item-x'; ids are like" in refused(capsys, "data", "sids", str(path), "--item", "item-x")
    for wrong in ("x", "4", "-1"):
        assert "code 1 should be a number 0..3, as in --prefix" in refused(capsys, "data", "sids", str(path), f"--prefix={wrong}")
    assert "codes=256 is more than the 200 different embeddings" in refused(capsys, "data", "sids", "synthetic")
    main(["data", "sids", "synthetic", "--codes", "8", "--levels", "2", "--json"])
    facts = json.loads(capsys.readouterr().out)
    assert facts["items"] == 200 and [level["width"] for level in facts["levels"]] == [8, 8]
    main(["data", "sids", str(path), "--data.columns.0.sids.quantizer.codes", "3"])
    assert " / 3" in capsys.readouterr().out
    assert "--levels and --codes are of a data set" in refused(capsys, "data", "sids", str(path), "--codes", "8")
    assert "unrecognized arguments: --method.dim 3" in refused(capsys, "data", "sids", "synthetic", "--method.dim", "3")


def test_data_sids_of_an_experiment_without_any_says_so(capsys, experiment):
    assert "has no semantic IDs: its data.columns hold no SidTrie" in refused(capsys, "data", "sids", experiment)


def test_training_overrides_and_refuses_another_configuration(capsys, experiment, tmp_path):
    workdir = tmp_path / "run"
    arguments = ["train", experiment, "--smoke", "--workdir", str(workdir)]
    main([*arguments, "--method.negatives", "4"])
    result = json.loads(capsys.readouterr().out)
    assert result["step"] == 4 and np.isfinite(result["loss"])
    stored = json.loads((workdir / "experiment.json").read_text())
    assert (stored["method"]["negatives"], stored["method"]["dim"], stored["name"]) == (4, 16, "small")
    assert "method.negatives: 4 -> 8" in refused(capsys, *arguments)


def test_a_sweep_runs_each_value_into_one_table(capsys, experiment, tmp_path):
    workdir = tmp_path / "run"
    main(["train", experiment, "--workdir", str(workdir), "--sweep", "seed=0,1", "--optimizer.peak", "0.01"])
    rows = json.loads((workdir / "sweep.json").read_text())
    assert [row["run"] for row in rows] == ["seed=0", "seed=1"] and rows[0]["loss"] != rows[1]["loss"]
    assert {row["step"] for row in rows} == {2}
    table = capsys.readouterr().out.splitlines()
    assert table[0].split()[0] == "run" and len(table) == 3 and f"{rows[1]['loss']:.4f}" in table[2]
    for row in rows:
        stored = json.loads((workdir / "sweep" / row["run"] / "experiment.json").read_text())
        assert (stored["seed"], stored["optimizer"]["peak"]) == (int(row["run"][-1]), 0.01)


def test_a_sweep_tells_truth_by_flags(experiment, tmp_path):
    main(["train", experiment, "--workdir", str(tmp_path), "--sweep", "data.packing=True,False"])
    stored = {
        row["run"]: json.loads((tmp_path / "sweep" / row["run"] / "experiment.json").read_text()) for row in json.loads((tmp_path / "sweep.json").read_text())
    }
    assert {run: record["data"]["packing"] for run, record in stored.items()} == {"packing=True": True, "packing=False": False}


RETRIEVER = """
from jaxrec.data.collection import SyntheticCollection
from jaxrec.data.passages import Passages
from jaxrec.data.tokenizers import WordPiece
from jaxrec.evals.document_retrieval import DocumentRetrieval
from jaxrec.experiment import Experiment
from jaxrec.method import FROM_DATA
from jaxrec.methods.late_interaction.colbert import ColBERT
from jaxrec.nn.bert import BERT

source = SyntheticCollection(documents=30, queries=8)
experiment = Experiment(
    method=ColBERT(encoder=BERT(vocabulary=FROM_DATA, length=16, dim=16, layers=1, heads=2, hidden=16, types=1), dim=8),
    data=Passages(source, WordPiece(source, size=300), batch=8, query_length=8, document_length=16),
    steps=1,
    evals=(DocumentRetrieval(),),
)
"""


def test_a_retriever_from_training_to_questions(capsys, tmp_path):
    path, workdir, bundle, page = (str(tmp_path / name) for name in ("finder.py", "run", "bundle", "page.html"))
    (tmp_path / "finder.py").write_text(RETRIEVER)
    main(["train", path, "--workdir", workdir])
    main(["eval", path, "--workdir", workdir])
    table = capsys.readouterr().out
    assert "nDCG@10" in table and all(f"\n{system}" in table for system in ("finder ", "BM25 ", "BM25 + finder"))
    main(["eval", path, "--workdir", workdir, "--split", "validation", "--json"])
    assert set(json.loads(capsys.readouterr().out)) == {"finder", "BM25", "BM25 + finder"}
    main(["export", path, "--workdir", workdir, "--to", bundle])
    assert "jaxrec query" in (said := capsys.readouterr().err) and "--text WORDS" in said
    main(["query", bundle, "--text", "ba be", "-k", "3", "--json", "--deny", "document-2"])
    answers = json.loads(capsys.readouterr().out)
    assert len(answers) == 3 and {"document", "title", "text", "score"} == set(answers[0]) and "document-2" not in {answer["document"] for answer in answers}
    main(["query", bundle, "--text", "ba be", "-k", "2"])
    assert len(capsys.readouterr().out.splitlines()) == 4
    main(["explain", path, "--workdir", workdir, "--query", "ba be", "--document", "document-3", "--html", page])
    assert "document-3" in capsys.readouterr().out and "<html" in (tmp_path / "page.html").read_text()
    assert "finds documents: give --text WORDS" in refused(capsys, "query", bundle, "--history", "a")
    assert "query 0 has no text" in refused(capsys, "query", bundle, "--text", " ")


def test_embed_writes_vectors_and_refuses_other_arguments(capsys, tmp_path):
    model, texts, vectors = tmp_path / "model", tmp_path / "texts.txt", tmp_path / "vectors.npy"
    small = LanguageModel(vocabulary=30, dim=8, layers=2, heads=2, hidden=8, length=32)
    config = language_families.to_config(small) | {"bos_token_id": 29}  # the tokenizer begins rows with nothing
    safetensors_files.write(model, config, language_families.to_hf(small, create(small.spec(), jax.random.key(0))))
    tokenizer = Tokenizer(models.BPE(vocab={letter: number for number, letter in enumerate("abcdefgh .")}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.save(str(model / "tokenizer.json"))
    texts.write_text("a bad cafe\nabc\n" + "a face. " * 8)
    arguments = ["embed", str(model), "--input", str(texts), "--output", str(vectors), "--exit", "2", "--blocks", "4"]
    main(arguments)
    assert f"wrote 3 vectors of 8 to {vectors}, 1 of the texts cut" in capsys.readouterr().err
    np.testing.assert_allclose(np.linalg.norm(np.load(vectors), axis=1), 1, atol=1e-6)
    main(arguments)
    assert "is complete" in capsys.readouterr().err
    assert "was made with plan='htp', and now it is 'vanilla'; repeat the first command, or remove" in refused(capsys, *arguments, "--plan", "vanilla")
    other = [*arguments[:5], str(tmp_path / "other.npy")]
    assert "exit=7 is more than the 2 layers of the model; ask for exit <= 2" in refused(capsys, *other)
    assert "plan='hpt' is not one of vanilla, echo" in refused(capsys, *other, "--plan", "hpt")
    for wrong in ("words", "0", "-3"):
        assert f"blocks='{wrong}' must be 'sentence', or a number of tokens such as 64" in refused(capsys, *other, f"--blocks={wrong}")
