"""A machine with jax, flax, optax and orbax alone trains on what another one has built: the cache is all that it needs."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

EXPERIMENT = """
from jaxrec.data.builders.synthetic import Synthetic
from jaxrec.data.sequences import Sequences
from jaxrec.experiment import Experiment
from jaxrec.methods.generative.tiger import TIGER
from jaxrec.stages.embeddings import TextEmbeddings
from jaxrec.stages.quantizers import ResidualKMeans
from jaxrec.stages.semantic_ids import SemanticIds
from jaxrec.stages.sid_trie import SidTrie
from jaxrec.stages.text_encoders import TfidfSvd

source = Synthetic(users=64, items=50)
sids = SemanticIds(TextEmbeddings(source, encoder=TfidfSvd(dim=8)), ResidualKMeans(levels=2, codes=4))
data = Sequences(source, batch=8, length=8, row=16, form="last", stride=1, segments=4, columns=(SidTrie(sids),))
experiment = Experiment(TIGER(dim=16, layers=1, heads=2, head=8, hidden=32), data, steps=2)
"""
BARE = """
import importlib.abc, importlib.metadata, sys

LACKING = {"sklearn", "grain", "tensorflow_datasets", "scann", "tyro", "tokenizers", "safetensors", "array_record", "threadpoolctl", "matplotlib", "pyarrow"}

class Lacking(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.split(".")[0] in LACKING:
            raise ModuleNotFoundError(name)

version = importlib.metadata.version
def installed(name):
    if name.replace("-", "_") in LACKING | {"scikit_learn"}:
        raise importlib.metadata.PackageNotFoundError(name)
    return version(name)

sys.meta_path.insert(0, Lacking())
importlib.metadata.version = installed
"""
OPEN = """
from jaxrec.experiment import load
experiment = load("tiger_shop.py").resolve()
print(sorted(experiment.data.batches()[0]), sorted(experiment.arrays()))
"""


@pytest.mark.slow
def test_a_built_cache_opens_without_what_built_it(tmp_path):
    (tmp_path / "tiger_shop.py").write_text(EXPERIMENT)
    environment = os.environ | {"JAXREC_CACHE": str(tmp_path / "cache"), "JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}

    def run(program: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)

    cold = run(BARE + OPEN)
    assert cold.returncode and "ModuleNotFoundError" in cold.stderr  # nothing is built yet, and here it cannot be
    built = run(OPEN)
    assert built.returncode == 0, built.stderr
    assert run(BARE + OPEN).stdout == built.stdout and "sids.codes" in built.stdout
