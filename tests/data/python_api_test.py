"""PythonApi: what calls resolve to, in which order, and what is kept."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from jaxrec.data.builders.python_api import PythonApi
from jaxrec.data.builders.python_modules import first_paragraph, read_module
from jaxrec.data.builders.python_names import Names

SMALL = ("absl-py", "optax")


def mine(compiled=("math",), **sources):
    """Names of a program, given as source by module name (`__` for dots; packages end in `__init`)."""
    modules = []
    for key, source in sources.items():
        package = key.endswith("__init")
        modules.append(read_module(source.encode(), key.removesuffix("__init").replace("__", "."), package=package))
    return Names(modules, compiled)


def calls(names, function):
    """What `function` calls; builtins by their bare name, None for what stays unknown."""
    module = names.definitions[function].module
    return [names.called(module, reference) for reference in names.modules[module].calls[function]]


def test_imports_aliases_and_reexports_are_one_name():
    names = mine(
        a__init="from .inner import work as work\nfrom . import inner",
        a__inner="def work(): pass\ndef other(): pass",
        b="import a as x\nimport a.inner\nfrom a import work as w, inner\nfrom a.inner import *\ndef f():\n from a.inner import work as local\n"
        " x.work(); a.inner.work(); w(); inner.work(); other(); local()",
    )
    assert calls(names, "b.f") == ["a.inner.work"] * 4 + ["a.inner.other", "a.inner.work"]


def test_relative_imports_climb_packages():
    names = mine(p__init="", p__q__init="", p__top="def t(): pass", p__q__low="from ..top import t\nfrom .. import top\ndef f(): t(); top.t()")
    assert calls(names, "p.q.low.f") == ["p.top.t"] * 2


def test_the_preferred_branch_of_a_conditional_import_counts():
    names = mine(fast="def run(): pass", slow="def run(): pass", m="try:\n from fast import run\nexcept ImportError:\n from slow import run\ndef f(): run()")
    assert calls(names, "m.f") == ["fast.run"]


def test_compiled_functions_have_the_name_by_which_they_are_reached():
    names = mine(m="import math\nfrom math import *\ndef f(): math.sqrt(1); sin(1); len([])")
    assert calls(names, "m.f") == ["math.sqrt", "math.sin", "builtins.len"]


def test_methods_resolve_through_self_bases_super_and_known_classes():
    names = mine(
        m="""
class Base:
    def greet(self): pass
    @classmethod
    def make(cls) -> "Base": return cls()
class Part:
    def turn(self): pass
class Child(Base):
    def __init__(self, given: Part | None):
        super().greet()
        self.part = Part()
        self.given = given
    @property
    def spare(self) -> Part: return self.part
    def run(self, other: "Child"):
        self.greet(); self.part.turn(); self.given.turn(); self.spare.turn(); other.greet(); self.missing()
        made = Base.make(); made.greet()
        with Part() as part: part.turn()
        made = unknown(); made.turn_away()
"""
    )
    assert calls(names, "m.Child.__init__") == ["m.Base.greet", "m.Part"]
    assert calls(names, "m.Base.make") == ["m.Base"]
    assert calls(names, "m.Child.run") == [
        *["m.Base.greet", "m.Part.turn", "m.Part.turn", "m.Part.turn", "m.Base.greet", None, "m.Base.make", "m.Base.greet", "m.Part", "m.Part.turn"],
        *[None, None],
    ]


def test_a_method_of_an_unknown_object_needs_a_unique_name_in_the_package():
    names = mine(m="class A:\n def only(self): pass\n def both(self): pass\nclass B:\n def both(self): pass\ndef f(x): x.only(); x.both(); x.append(1)")
    assert calls(names, "m.f") == ["m.A.only", None, None]


def test_returned_values_partials_and_variables():
    names = mine(
        m="import functools\nclass A:\n def go(self): pass\ndef build():\n return A()\nalias = build\nwrapped = unknown(build)\n"
        "def f():\n build().go(); alias(); wrapped()\n g = functools.partial(build, 1); g()",
        functools="def partial(f, *a): pass",
    )
    assert calls(names, "m.f") == ["m.build", "m.A.go", "m.build", "m.wrapped", "functools.partial", "m.build"]


def test_local_names_hide_those_of_the_module():
    names = mine(m="def g(): pass\ndef f(g): g()\ndef h():\n [g() for g in []]; g()")
    assert calls(names, "m.f") == []
    assert calls(names, "m.h") == ["m.g"]


def test_calls_stand_in_the_order_of_evaluation():
    source = "\n".join(f"def {name}(*x): pass" for name in "abcdefghij")
    body = "\n x = a(b(c()), k=d())\n y = [e(g()) for _ in f() if h()]\n x[i()] = j()\n def inner(z=a()): b()\n {c(): d()}\n e() if f() else g()"
    assert calls(mine(m=f"{source}\ndef run():{body}"), "m.run") == [f"m.{c}" for c in "cbda" + "fhge" + "ji" + "ab" + "cd" + "feg"]


def test_cycles_of_imports_bases_and_attributes_end():
    names = mine(p="from q import x\nfrom q import *\nclass A(B): pass\nclass B(A):\n def f(self): self.g(); x(); y()", q="from p import x\nfrom p import *")
    assert calls(names, "p.B.f") == [None, None, None]


def test_titles_are_public_names():
    names = mine(
        a__init="from a._hidden import Tool, run\nfrom a import wide",
        a___hidden="class Tool:\n def use(self): pass\ndef run(): pass\ndef secret(): pass",
        a__wide="",
    )
    hidden = ["a._hidden.run", "a._hidden.Tool.use", "a._hidden.secret", "builtins.dict.get"]
    assert names.titles(hidden, {}) == dict(zip(hidden, ["a.run", "a.Tool.use", "a._hidden.secret", "dict.get"], strict=True))


def test_the_text_is_the_first_paragraph_that_is_no_signature():
    assert first_paragraph("Adds\n  two numbers.\n\n  More.") == "Adds two numbers."
    assert first_paragraph("add(x, y)\n--\n\nadd(x, y)\n\nAdds.") == "Adds."
    assert first_paragraph("add(x, y)") == "add(x, y)"
    assert first_paragraph(None) == ""
    names = mine(n="import math\nadd_newdoc('n', 'root', 'root(x)\\n\\nA root.')\nroot = math.sqrt\ndef f():\n 'Does f.'")
    assert (names.text("math.sqrt"), names.text("n.f"), names.text("math.sin")) == ("A root.", "Does f.", "")
    assert names.text("builtins.len").startswith("Return the number of items")


def test_the_core_is_a_fixed_point_without_copies_and_repeats():
    sessions = {
        "u1": ["a", "a", "b", "common"],
        "u2": ["common", "a", "b"],  # without the common call, a copy of u1
        "u3": ["b", "a", "common"],
        "u4": ["rare", "c", "common"],  # rare goes, so u4 goes, so c goes ...
        "u5": ["b", "c", "a", "common"],  # ... and u5 is a copy of u3
        "u6": ["a", "a", "common"],
    }
    assert PythonApi(max_share=0.9, min_session=2, min_item=2)._core(sessions) == {"u1": ["a", "b"], "u3": ["b", "a"]}


@pytest.fixture(scope="module")
def interactions():
    return PythonApi(packages=SMALL, min_session=3, min_item=2, max_share=0.2).read()


def test_real_packages_give_sorted_described_interactions(interactions):
    assert interactions.items == sorted(interactions.items) and interactions.users == sorted(interactions.users)
    assert len(interactions.users) > 50 and interactions.lengths().min() >= 3
    assert np.bincount(interactions.sequence)[1:].min() >= 2
    assert set(interactions.user_fields["package"]) <= {"absl", "optax"}
    assert not any("test" in user.rpartition(".")[0].split(".")[-1].split("_") for user in interactions.users)
    titles = dict(zip(interactions.items, interactions.item_fields["title"], strict=True))
    assert titles["optax._src.transform.ScaleByAdamState"] == "optax.ScaleByAdamState"
    text = dict(zip(interactions.items, interactions.item_fields["text"], strict=True))
    assert text["optax._src.transform.ScaleByAdamState"] == "State for the Adam algorithm."


@pytest.mark.parametrize("seed", ["0", "1"])
def test_mining_does_not_depend_on_the_hash_seed(interactions, seed):
    program = (
        "import hashlib, json\nfrom jaxrec.data.builders.python_api import PythonApi\n"
        f"x = PythonApi(packages={SMALL}, min_session=3, min_item=2, max_share=0.2).read()\n"
        "text = json.dumps([x.users, x.items, x.item_fields, x.user_fields]).encode() + x.offsets.tobytes() + x.sequence.tobytes()\n"
        "print(hashlib.sha256(text).hexdigest())"
    )
    result = subprocess.run([sys.executable, "-c", program], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True)
    x = interactions
    text = json.dumps([x.users, x.items, x.item_fields, x.user_fields]).encode() + x.offsets.tobytes() + x.sequence.tobytes()
    assert result.stdout.strip() == hashlib.sha256(text).hexdigest()


def test_the_fingerprint_follows_versions(monkeypatch):
    source = PythonApi(packages=SMALL)
    assert set(source.inputs()) == {"python", *SMALL}
    before = source.fingerprint()
    monkeypatch.setattr("platform.python_version", lambda: "9.9.9")
    assert source.fingerprint() != before


def test_errors_name_the_package_and_the_fix():
    with pytest.raises(ModuleNotFoundError, match="'no-such-package', which is not installed; install it or leave it out"):
        PythonApi(packages=("no-such-package",)).read()
    with pytest.raises(ValueError, match="no function in absl-py has 500 calls .* lower min_session or min_item"):
        PythonApi(packages=("absl-py",), min_session=500).read()
