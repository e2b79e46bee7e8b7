"""TurkColBERT: its loss against the paper's equation."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from jaxrec.methods.late_interaction.turkcolbert import tiny
from jaxrec.param import create

METHOD, BATCH = tiny()


def test_it_is_the_triplet_loss_of_mean_maxsim():
    params = create(METHOD.spec(), jax.random.key(0))

    @jax.jit
    def both(batch):
        texts = (METHOD.encode_query(params, batch), *(METHOD.encode_item(params, {"document": d}) for d in (batch["document"], batch["negative"][:, 0])))
        return texts, METHOD.loss(params, batch, jax.random.key(1)).terms

    (query, relevant, other), terms = jax.device_get(both(BATCH))
    expected = []
    for row in range(4):
        own, wrong = (np.mean((query.values[row] @ texts.values[row, texts.mask[row]].T).max(axis=1)) for texts in (relevant, other))
        expected.append(max(0, 0.2 - own + wrong))
    total, weight = terms["contrastive"]
    assert set(terms) == {"contrastive"} and any(expected)
    assert total / weight == pytest.approx(np.mean(expected), rel=1e-4)


def test_errors():
    with pytest.raises(ValueError, match="TurkColBERT: margin=-0.1 must be at least 0"):
        dataclasses.replace(METHOD, margin=-0.1)
    alone = {name: array for name, array in BATCH.items() if not name.startswith("negative")}
    with pytest.raises(ValueError, match=r"TurkColBERT: in_batch=False and no `negative` .*; give Passages negatives= and hard=, or set in_batch=True"):
        jax.eval_shape(METHOD.loss, METHOD.spec(), alone, jax.random.key(0))
