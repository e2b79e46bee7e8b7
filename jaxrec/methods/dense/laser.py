"""LaSER: a dense retriever that thinks before it answers, in states instead of words, and learns what to think from reasoning that was written down.

    h_1 = the state of the text's last token;   t = sum over v of softmax(W h_j)_v E_v,   h_{j+1} = the state of t appended;   vector = unit(mean of h_1 .. h_K)

    L = InfoNCE(q, D) + l1 InfoNCE(q*, D) + l2 KL(softmax(q* D) || softmax(q D)) + l3 mean_i KL(softmax(h*_i D) || softmax(h_i D))

arXiv 2603.01425 (2026). In training, the same model also reads the query with its reasoning behind it (the explicit view): q* is its state at the end,
h*_1 .. h*_K are those at the ends of the reasoning's steps, K of them evenly from the first to the last. Both are teachers, of which no gradient goes
back; the documents D learn from all terms. A query without reasoning has the first term alone. As in the authors' code, a text of K thoughts has K - 1
soft tokens behind it, and K = 1 is `LastToken`. With all l = 0 there is nothing but thoughts and the contrastive term, the setting in which the paper
compares with GIRCSE (Tsai et al. 2025, arXiv 2509.24291; its own loss has a term for each step).

What we changed: documents that the batch knows to answer a query, too, are left out of all terms of it; and no texts are rewritten with a chat template.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jaxrec.limits import POSITIVE, check
from jaxrec.method import Array, Batch, Loss
from jaxrec.methods.dense import last_token
from jaxrec.methods.dense.last_token import LastToken, last, similarity, vector
from jaxrec.nn.embedding import Embedding
from jaxrec.nn.language_model import Decoder, LanguageModel
from jaxrec.nn.norm import unit
from jaxrec.nn.weights import HIDDEN
from jaxrec.ops.contrastive import contrastive, divergence
from jaxrec.param import Tree


@dataclass(frozen=True)
class LaSER(LastToken):
    """LaSER; the fields of `LastToken` mean the same. Each of the last three terms needs `reasoning` in the batch, unless its weight is 0.

    Attributes:
      thoughts: K, states that make up a vector.
      teacher: l1, the weight of the explicit view's own contrastive term.
      distillation: l2, the weight of the divergence from the explicit view's scores.
      trajectory: l3, the weight of the divergence from the scores of its steps, one for each thought.
      distillation_temperature, trajectory_temperature: cosines are divided by them there.
      chunk: words whose scores are held at once when a soft token is made.
    """

    thoughts: int = 3
    teacher: float = 1.0
    distillation: float = 10.0
    trajectory: float = 0.1
    distillation_temperature: float = 0.02
    trajectory_temperature: float = 0.05
    chunk: int = 16_384

    def __post_init__(self):
        super().__post_init__()
        weights = dict.fromkeys(("teacher", "distillation", "trajectory"), 0)
        check(self, thoughts=1, chunk=1, **weights, distillation_temperature=POSITIVE, trajectory_temperature=POSITIVE)
        if self.thoughts > 1 and (self.pooling != "last" or self.plan is not None):
            raise ValueError(f"thoughts={self.thoughts} go on from the last token of a text; leave pooling='last' and plan=None")
        if self.thoughts > 1 and self.thoughts >= self.encoder.length:
            raise ValueError(f"thoughts={self.thoughts} leave a text no room in the {self.encoder.length} tokens of the model; ask for fewer")
        if self.thoughts > 1 and self.encoder.dropout:
            raise ValueError(f"encoder.dropout={self.encoder.dropout} does not reach thoughts, which are read through a cache; set it to 0")

    @property
    def coefficients(self) -> Mapping[str, float]:  # type: ignore[override]
        """The weights of the loss terms."""
        return {"teacher": self.teacher, "distillation": self.distillation, "trajectory": self.trajectory}

    @property
    def scores_words(self) -> bool:
        return self.thoughts > 1

    def states(self, decoder: Decoder, ids: Array, key: Array | None = None) -> Array:
        """The thoughts [B, K, D] of texts [B, T].

        Raises:
          ValueError: the texts and their soft tokens are longer than the model.
        """
        if self.thoughts == 1:
            return super().states(decoder, ids, key)
        T = ids.shape[1]
        if T + self.thoughts - 1 > decoder.length:
            raise ValueError(
                f"texts of {T} tokens and {self.thoughts - 1} soft tokens are longer than the {decoder.length} of the model; cut texts to "
                f"{decoder.length - self.thoughts + 1}"
            )
        return think(decoder.unstacked(), ids, ids != self.pad, thoughts=self.thoughts, chunk=self.chunk)

    def loss(self, params: Tree, batch: Batch, key: Array) -> Loss:
        """Terms: "contrastive"; and, where their weights are not 0, "teacher", "distillation" and "trajectory".

        Args:
          params: as `spec` declares them.
          batch: with `reasoning` [B, Te] int32, a query and its reasoning, and `step` [B, Te] bool, the last token of each step; a row without a step has no
            reasoning.
          key: for dropout.

        Raises:
          ValueError: the batch has no `reasoning`, and a weight is not 0.
        """
        decoder, weight = params.decoder, batch["mask"]
        states, documents, excluded = self.compared(decoder, batch, key)
        queries = vector(states)
        loss = self.ranked(queries, documents, excluded, weight)
        if not any(self.coefficients.values()):
            return loss
        if not {"reasoning", "step"} <= batch.keys():
            raise ValueError(
                f"the batch has {', '.join(batch)}, and no reasoning with its steps to learn from; train on ReasonedPassages, or set teacher, "
                "distillation and trajectory to 0"
            )
        explicit, steps = self._explicit(decoder, batch["reasoning"], batch["step"])
        taught = weight * batch["step"].any(axis=1)  # [B] rows with a teacher

        def divergences(teachers: Array, students: Array, temperature: float) -> Array:
            """The sum of KL(teacher || student) over documents, of unit vectors [B, K, D]."""
            hidden = jnp.repeat(excluded, teachers.shape[1], axis=0)  # [B K, C]
            wanted, given = (jnp.where(hidden, HIDDEN, (similarity(some, documents) / temperature).reshape(hidden.shape)) for some in (teachers, students))
            return divergence(jax.lax.stop_gradient(wanted), given, jnp.repeat(taught, teachers.shape[1]))[0] / teachers.shape[1]

        terms = {
            "teacher": lambda: contrastive(similarity(explicit, documents) / self.temperature, excluded, taught)[0],
            "distillation": lambda: divergences(explicit[:, None], queries[:, None], self.distillation_temperature),
            "trajectory": lambda: divergences(steps, unit(states), self.trajectory_temperature),
        }
        # The weight is that of all rows: a row without reasoning is one whose last terms are 0, not one that is not there.
        found = {name: (term(), weight.sum()) for name, term in terms.items() if self.coefficients[name]}
        return Loss({**loss.terms, **found}, {**loss.metrics, "with_reasoning": (taught.sum(), weight.sum())})

    def _explicit(self, decoder: Decoder, ids: Array, step: Array) -> tuple[Array, Array]:
        """Unit vectors of the explicit view: its last state [B, D], and those at the ends of K steps [B, K, D]."""
        attended = ids != self.pad
        hidden = decoder(ids, attended.astype(jnp.int32))  # [B, Te, D]
        rows = jnp.arange(len(ids))
        return unit(hidden[rows, last(attended)]), unit(hidden[rows[:, None], spread(step, self.thoughts)])


def think(decoder: Decoder, ids: Array, attended: Array, *, thoughts: int, chunk: int) -> Array:
    """The states [B, K, D] of the last token of texts [B, T], padded on either side, and of the soft tokens behind it, each read once."""
    if ids.shape[1] == 1:  # before the token that is held back there must be something to read, if only padding
        ids, attended = (jnp.pad(array, ((0, 0), (1, 0))) for array in (ids, attended))
    T = ids.shape[1]
    source = (jnp.arange(T)[None] + last(attended)[:, None] + 1) % T
    ids, attended = jnp.take_along_axis(ids, source, axis=1), jnp.take_along_axis(attended, source, axis=1)  # texts now end together
    # The last token is held back: what the cache's first reading gives is scores, and we want the state.
    _, cache = decoder.prefill(ids[:, :-1], attended[:, :-1].astype(jnp.int32), slots=T + thoughts - 1)
    x, states = decoder.embed(ids[:, -1]), []
    for thought in range(thoughts):
        hidden, cache = decoder.extend(cache, embeddings=x[:, None])
        states.append(hidden[:, 0])
        if thought < thoughts - 1:
            x = expected_word(decoder, hidden[:, 0], chunk=chunk)
    return jnp.stack(states, axis=1)


def expected_word(decoder: Decoder, hidden: Array, *, chunk: int) -> Array:
    """sum_v softmax(W h)_v E_v for states [B, D]: [B, D], as `decoder.embed` would give it; the scores of `chunk` words are held at once."""
    V = decoder.vocabulary
    chunk = min(chunk, V)

    @jax.checkpoint
    def add(carry: tuple[Array, Array, Array], low: Array) -> tuple[tuple[Array, Array, Array], None]:
        largest, total, mean = carry
        first = jnp.minimum(low, V - chunk)  # the last chunk may have words of the one before, which do not count again
        scoring, words = (jax.lax.dynamic_slice_in_dim(table, first, chunk) for table in (decoder.table(), decoder.word.table))
        logits = dataclasses.replace(decoder, output=Embedding(scoring), vocabulary=chunk).logits(hidden)  # [B, chunk]
        logits = jnp.where((first + jnp.arange(chunk) >= low)[None], logits, -jnp.inf)
        now = jax.lax.stop_gradient(jnp.maximum(largest, logits.max(axis=1)))
        shares, kept = jnp.exp(logits - now[:, None]), jnp.exp(largest - now)
        mean = kept[:, None] * mean + jnp.einsum("bv,vd->bd", shares.astype(words.dtype), words, preferred_element_type=jnp.float32)
        return (now, kept * total + shares.sum(axis=1), mean), None

    B, D = hidden.shape
    start = jnp.full(B, -jnp.inf), jnp.zeros(B), jnp.zeros((B, D))
    (_, total, mean), _ = jax.lax.scan(add, start, jnp.arange(0, V, chunk))
    return (mean / total[:, None] * decoder.scale).astype(hidden.dtype)


def spread(step: Array, count: int) -> Array:
    """The places [B, K] of K of the M marks of each row [B, T] bool: evenly from the first to the last, rounded down; the last alone where
    K = 1, and again where M < K."""
    number = jnp.arange(count)[None]
    M = step.sum(axis=1)[:, None]
    chosen = jnp.where(M < count, jnp.minimum(number, M - 1), number * (M - 1) // (count - 1) if count > 1 else M - 1)  # [B, K]
    rank = jnp.cumsum(step, axis=1) - 1
    return jnp.argmax(step[:, None, :] & (rank[:, None, :] == chosen[:, :, None]), axis=2)


def tiny() -> tuple[LaSER, dict[str, Any]]:
    """A small case for the contract tests."""
    method, batch = last_token.tiny()
    reasoning = jax.random.randint(jax.random.key(4), (4, 10), 5, 48).at[2, 7:].set(0).at[3, 4:].set(0)
    reasoning = reasoning.at[:, :4].set(batch["query"][:, :4])
    step = jnp.zeros((4, 10), bool).at[:2, jnp.asarray([5, 7, 8, 9])].set(True).at[2, 6].set(True)  # four steps, one, and none
    model = LanguageModel(vocabulary=48, dim=16, layers=2, heads=2, hidden=32, length=24)
    laser = LaSER(encoder=model, pad=method.pad, temperature=0.1, distillation_temperature=0.1, distillation=1.0, chunk=20)
    return laser, {**batch, "reasoning": reasoning, "step": step}
