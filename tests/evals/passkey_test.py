"""Passkeys given back: by depth and length against a model that is known, and teacher forcing against greedy decoding."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

from jaxrec.data.passkeys import Passkeys
from jaxrec.data.text import SyntheticText, TextRows, Tokens
from jaxrec.evals.passkey import PasskeyRecall, answers, report, table
from jaxrec.method import bind
from jaxrec.methods.language.causal_lm import CausalLM
from jaxrec.nn.language_model import LanguageModel
from jaxrec.param import create

DATA = Passkeys(Tokens(SyntheticText(words=400)), length=24, key=2, symbols=3, count=32, batch=4)


@struct.dataclass
class Reader:
    """Writes what followed the same token before, but sees only the last `sight` tokens: a decoder whose answers are known."""

    vocabulary: int = struct.field(pytree_node=False)
    sight: int = struct.field(pytree_node=False)

    @property
    def model(self):
        return dataclasses.replace(LanguageModel(), length=48)

    def __call__(self, token, segment):
        T = token.shape[1]
        place = jnp.arange(T)
        after = (token[:, None, :-1] == token[..., None]) & (place[None, :-1] < place[:, None])[None]  # [B, T, T - 1] an earlier place with this token
        after &= (place[:, None] - place[None, :-1] < self.sight)[None]
        return jax.nn.one_hot(jnp.take_along_axis(token, 1 + jnp.argmax(after, axis=-1), axis=1) * after.any(-1), self.vocabulary)

    def logits(self, hidden):
        return hidden


def test_what_is_out_of_sight_is_not_given_back():
    reader = Reader(DATA.info()["vocabulary"], sight=12)
    rows = DATA.rows("test", 24, 64)
    found = answers(reader, reader, rows, 2)
    near = 24 - 2 - rows["depth"] * (24 - 5) < 12  # from the last mark back to the first
    assert near.any() and (~near).any()
    np.testing.assert_array_equal(found, np.stack([near, near], axis=1))
    shown = report(reader, reader, DATA, "test", rows=64)["keys"]
    assert list(shown) == [24, 48] and shown[24]["keys"] == pytest.approx(found.all(axis=1).mean())
    assert shown[24]["keys"] > shown[48]["keys"] > 0
    assert shown[24]["symbols"] == pytest.approx(found.mean()) and shown[24]["rows"] == 64
    assert shown[24]["depths"][:4] == [0.0] * 4 and shown[24]["depths"][-1] > 0.5
    assert "48" in table("reader", {"keys": shown})


def test_right_everywhere_is_what_greedy_decoding_writes():
    method = bind(CausalLM(LanguageModel(vocabulary=-1, dim=16, layers=1, heads=2, hidden=32, length=32)), DATA.info())
    params = create(method.spec(), jax.random.key(1))
    rows = DATA.rows("validation", 24, 48)
    forward = jax.jit(lambda params, token: jnp.argmax(params.logits(params(token)), axis=-1))
    written = rows["token"].copy()  # the last `key` tokens are replaced by what the model writes
    first = np.asarray(forward(params, written))[:, -2]
    written[:, -1] = first
    second = np.asarray(forward(params, written))[:, -1]
    greedy = (np.stack([first, second], axis=1) == rows["target"][:, -2:]).all(axis=1)
    # an untrained model gives no key back: plant its own writing as the key
    planted = rows | {"target": np.concatenate([rows["target"][:, :-2], first[:, None], second[:, None]], axis=1), "token": written}
    assert answers(method, params, planted, 2).all()
    np.testing.assert_array_equal(answers(method, params, rows, 2).all(axis=1), greedy)
    assert dict(PasskeyRecall(rows=48)(method, params, DATA)) == {
        "validation keys": pytest.approx(greedy.mean()),
        "validation symbols": pytest.approx(answers(method, params, rows, 2).mean()),
    }


def test_other_data_is_refused():
    with pytest.raises(ValueError, match="TextRows hides no keys; PasskeyRecall needs Passkeys"):
        PasskeyRecall().check(TextRows(DATA.tokens))
