"""ColEmbed: its loss against the paper's equation."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from jaxrec.methods.late_interaction.colembed import tiny
from jaxrec.param import create


def test_it_is_infonce_over_a_rows_own_documents():
    method, batch = tiny()
    method = dataclasses.replace(method, temperature=0.1)
    params = create(method.spec(), jax.random.key(0))

    @jax.jit
    def both(batch):
        texts = method.encode_query(params, batch), method.encode_item(params, batch), method.encode_item(params, {"document": batch["negative"][:, 0]})
        return texts, method.loss(params, batch, jax.random.key(1)).terms["contrastive"]

    (query, relevant, other), (total, weight) = jax.device_get(both(batch))
    expected = []
    for row in range(4):
        words = query.values[row, query.mask[row]]
        own, wrong = (np.mean((words @ texts.values[row, texts.mask[row]].T).max(axis=1)) / 0.1 for texts in (relevant, other))
        expected.append(np.log(np.exp(own) + np.exp(wrong)) - own)
    assert (query.mask.sum(axis=1) == 4).all()  # no [MASK]s
    assert total / weight == pytest.approx(np.mean(expected), rel=1e-4)
