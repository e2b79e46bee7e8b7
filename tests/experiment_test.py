"""Experiment: loading a file, overriding by path, telling two configurations apart, and refusing what cannot work."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import ClassVar

import pytest

from jaxrec.data.builders.synthetic import Synthetic
from jaxrec.data.builders.table import Table
from jaxrec.data.collection import SyntheticCollection
from jaxrec.data.passages import Passages
from jaxrec.data.sequences import Sequences
from jaxrec.data.tokenizers import WordPiece
from jaxrec.experiment import Evaluator, Experiment, changes, describe, differences, identify, load, override
from jaxrec.method import Actor, Method
from jaxrec.methods.generative.tiger_decoder import TIGERDecoder
from jaxrec.methods.late_interaction.colbert import ColBERT
from jaxrec.methods.sequential.sasrec import SASRec
from jaxrec.nn.features import Feature
from jaxrec.sharding import Layout
from jaxrec.stages.hard_negatives import BM25Negatives

SMALL = Experiment(method=SASRec(dim=16, layers=1), data=Sequences(Synthetic(users=64, items=50), batch=8, length=8), steps=6)
FILE = """
from jaxrec.data.builders.synthetic import Synthetic
from jaxrec.data.sequences import Sequences
from jaxrec.experiment import Experiment
from jaxrec.methods.sequential.sasrec import SASRec

"""
OWN = """
@dataclass(frozen=True)
class Mine(SASRec):
    extra: int = 3

experiment = Experiment(method=Mine(), data=Sequences(Synthetic()), steps=7)
"""


def test_an_experiment_is_named_after_its_file(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(FILE + "experiment = Experiment(method=SASRec(), data=Sequences(Synthetic()), steps=7)")
    loaded = load(path)
    assert (loaded.name, loaded.steps, loaded.method) == ("mine", 7, SASRec())


def test_a_file_may_define_its_own_method(tmp_path):
    path = tmp_path / "own.py"
    path.write_text("from __future__ import annotations\nfrom dataclasses import dataclass\n" + FILE + OWN)
    assert load(path).method.extra == 3


def test_what_is_no_experiment_file_says_what_is_missing(tmp_path):
    (tmp_path / "sasrec_beauty.py").write_text("x = 1")
    (tmp_path / "wrong.py").write_text("experiment = 3")
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(FileNotFoundError, match=r"no experiment file .*sasrec_beuty.py; did you mean .*sasrec_beauty.py\?"):
        load(tmp_path / "sasrec_beuty.py")
    with pytest.raises(FileNotFoundError, match=r"no experiment file .*nowhere/a.py$"):
        load(tmp_path / "nowhere" / "a.py")
    with pytest.raises(ValueError, match=r"defines no `experiment`; end it with experiment = Experiment\(...\)"):
        load(tmp_path / "sasrec_beauty.py")
    with pytest.raises(ValueError, match="`experiment` is 3, not an Experiment"):
        load(tmp_path / "wrong.py")
    with pytest.raises(ValueError, match="is not a Python file"):
        load(tmp_path / "notes.txt")


MADE = "experiment = Experiment(method=SASRec(), data=Sequences(Synthetic()), steps=7)\n"


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        (FILE + MADE.replace("SASRec(", "SASRec(dimm=3"), ValueError, "7: TypeError: SASRec.* unexpected keyword argument 'dimm'.* Did you mean 'dim'\\?"),
        (FILE + MADE.replace("SASRec(", "SASRec(zzz=3"), ValueError, "7: TypeError: SASRec.* unexpected keyword argument 'zzz'$"),
        (FILE + MADE.replace("SASRec(", "SASRek("), ValueError, "7: NameError: name 'SASRek' is not defined. Did you mean 'SASRec'\\?$"),
        (FILE + MADE.replace("SASRec(", "SASRec(dim=-3"), ValueError, "7: SASRec: dim=-3 must be at least 1$"),
        (FILE + MADE.replace(", steps=7", ""), ValueError, "7: TypeError: Experiment.* missing 1 required positional argument: 'steps'$"),
        (FILE + "def made():\n    return {}['x']\n\nmade()\n", ValueError, "8: KeyError: 'x'$"),
        (FILE + MADE.replace("steps=7)", "steps=7]"), ValueError, "7: closing parenthesis .*: experiment = Experiment"),
        ("\nimport nosuchmodule\n", ImportError, "2: No module named 'nosuchmodule'$"),
    ],
)
def test_an_error_in_the_file_names_its_line_and_cause(tmp_path, text, kind, message):
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(kind, match=rf"^{tmp_path}/mine\.py:{message}") as raised:
        load(tmp_path / "mine.py")
    assert raised.value.__cause__ is not None  # --traceback shows where


def test_resolving_fills_the_method_from_the_data():
    method = SMALL.resolve().method
    assert (method.items, method.length, method.dim) == (50, 8, 16)


def test_override_by_path():
    changed = override(SMALL, {"method.dim": 32, "data.source.users": 10, "steps": 1})
    assert (changed.method.dim, changed.data.source.users, changed.steps) == (32, 10, 1)
    assert SMALL.method.dim == 16


def test_override_names_the_nearest_field():
    with pytest.raises(ValueError, match=r"SASRec has no field 'dimm'. Did you mean 'dim'\?"):
        override(SMALL, {"method.dimm": 32})
    with pytest.raises(ValueError, match="Experiment has no field 'zzz'. It has method, data, steps"):
        override(SMALL, {"zzz": 32})
    with pytest.raises(ValueError, match="Experiment.steps is 6, which has no field 'dim'"):
        override(SMALL, {"steps.dim": 32})


def test_describe_survives_json_and_differences_name_paths():
    a = describe(SMALL)
    assert json.loads(json.dumps(a)) == a and differences(a, json.loads(json.dumps(a))) == []
    assert a["method"]["type"] == "SASRec" and a["data"]["source"]["users"] == 64
    b = describe(override(SMALL, {"method.dim": 32, "layout.rules": (("batch", None),)}))
    assert differences(a, b) == ["layout.rules: [['batch', 'data']] -> [['batch', None]]", "method.dim: 16 -> 32"]
    assert describe(dataclasses.replace(SMALL, tables={"item.table": Synthetic(users=3)}))["tables"]["item.table"]["users"] == 3


@dataclass(frozen=True)
class Coupled(Method):
    couples: ClassVar[bool] = True


class Acting(Method, Actor):
    pass


def test_methods_that_couple_examples_refuse_accumulation_and_pmap():
    with pytest.raises(ValueError, match="Coupled couples the examples of a batch, so accumulate=2 .* use accumulate=1 and compile='jit'"):
        dataclasses.replace(SMALL, method=Coupled(), accumulate=2)
    with pytest.raises(ValueError, match="accumulate=1 with compile='pmap' would change its loss"):
        dataclasses.replace(SMALL, method=Coupled(), layout=Layout(compile="pmap"))
    assert dataclasses.replace(SMALL, method=Coupled()).method == Coupled()
    with pytest.raises(ValueError, match="Acting makes its own batches; accumulate=2 is not supported"):
        dataclasses.replace(SMALL, method=Acting(), accumulate=2)


@pytest.mark.parametrize(
    ("name", "value", "least"),
    [("steps", -1, 0), ("accumulate", 0, 1), ("dispatch", 0, 1), ("patience", -1, 0), ("log_every", -4, 0), ("eval_every", -4, 0), ("save_every", -4, 0)],
)
def test_numbers_out_of_range_are_refused(name, value, least):
    with pytest.raises(ValueError, match=f"^Experiment: {name}={value} must be at least {least}$"):
        dataclasses.replace(SMALL, **{name: value})


def test_a_batch_that_does_not_divide_into_microbatches_is_refused():
    with pytest.raises(ValueError, match="a batch of 8 rows does not divide into accumulate=3 microbatches"):
        dataclasses.replace(SMALL, accumulate=3)


def test_smoked_is_small_and_takes_its_own_overrides():
    small = dataclasses.replace(SMALL, steps=9999, method=SASRec(features=(Feature("category"),)), smoke={"method.dim": 4}).smoked()
    assert (small.steps, small.method.dim, small.method.features, small.data.batch) == (4, 4, (), 8)


def test_an_evaluator_without_a_call_says_so():
    with pytest.raises(TypeError, match="Evaluator does not evaluate"):
        Evaluator()(None, None, None)


def test_rows_of_another_form_than_the_method_learns_from_are_refused():
    wrong = Experiment(TIGERDecoder(), Sequences(Synthetic(users=64, items=50), batch=8), steps=1)
    with pytest.raises(ValueError, match="TIGERDecoder learns from rows of form 'stream', but data.form is 'next'; set data.form='stream'"):
        wrong.resolve()


def test_whatever_the_data_is_made_of_counts():
    source = SyntheticCollection()
    data = Passages(source, WordPiece(source, size=300), batch=8, negatives=BM25Negatives(source), hard=1)
    content = identify(Experiment(ColBERT(), data, steps=1))["content"]
    assert {name for name, value in content.items() if value} == {"data", "tokenizer", "negatives"}
    other = identify(Experiment(ColBERT(), dataclasses.replace(data, negatives=BM25Negatives(source, depth=70)), steps=1))["content"]
    assert [name for name in content if content[name] != other[name]] == ["negatives"]


def test_a_record_that_does_not_tell_a_content_is_no_change():
    source = SyntheticCollection()
    made = Experiment(ColBERT(), Passages(source, WordPiece(source, size=300), batch=8, negatives=BM25Negatives(source), hard=1), steps=1)
    before = json.loads(json.dumps(identify(made)))
    assert changes(before | {"content": before["content"] | {"negatives": "other"}}, made)[0].startswith("content.negatives: 'other' -> ")
    del before["content"]["negatives"]
    assert changes(before, made) == []


def test_a_record_from_before_a_field_was_added_is_as_its_default():
    made = Experiment(SASRec(), Sequences(Synthetic()), steps=1)
    before = json.loads(json.dumps(identify(made)))
    del before["method"]["stddev"], before["method"]["attention"], before["data"]["source"]["length"], before["seed"], before["layout"]
    assert changes(before, made) == []
    assert changes(before, override(made, {"method.stddev": 0.02})) == ["method.stddev: 0.0 -> 0.02"]
    assert "method.type: 'GRU4Rec' -> 'SASRec'" in changes(before | {"method": {"type": "GRU4Rec"}}, made)  # no field of SASRec is newer than that


def test_where_a_file_lies_is_no_change_but_what_it_holds_is(tmp_path):
    here, there = tmp_path / "shop.csv", tmp_path / "moved.csv"
    here.write_text("user,item,time\n1,a,1\n1,b,2\n1,c,3\n")
    there.write_text(here.read_text())
    made = Experiment(SASRec(), Sequences(Table(str(here))), steps=1)
    before = json.loads(json.dumps(identify(made)))
    moved = override(made, {"data.source.path": str(there)})
    assert changes(before, moved) == []
    there.write_text(there.read_text().replace("b", "d"))
    [line] = changes(before, moved)
    assert line.startswith("content.data: ")


def test_how_a_generator_searches_may_change_after_its_training():
    made = Experiment(TIGERDecoder(), Sequences(Synthetic(users=64, items=50), batch=8, form="stream"), steps=1)
    before = json.loads(json.dumps(identify(made)))
    other = override(made, {"method.beams": 50, "method.constrained": False})
    assert changes(before, other, search=True) == []
    assert changes(before, other) == ["method.beams: 20 -> 50", "method.constrained: True -> False"]  # validation would choose by another search
    assert changes(before, override(made, {"method.dim": 64})) == ["method.dim: 128 -> 64"]
