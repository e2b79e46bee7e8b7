"""LaSER on documents that are found by two steps of reasoning, and what each part of it is worth there.

    python -m benchmarks.laser_toy --seeds 5

A query is an entity and two relations, "a r s"; the document that answers it is the entity c with a -r-> b -s-> c, where every relation is a permutation of
the entities that nothing in the query tells. Its reasoning is "a r b", "b s c". A quarter of all queries is held out: each of their links is part of other
queries that are trained on, so they can be answered by whoever takes one link after the other, and not by whoever learns the answers. All systems are the
same decoder of two layers from scratch, with the same steps and batches.

    LaSER                     three thoughts, all four terms
    contrastive only          one state and InfoNCE: the encoder that the paper compares with
    thoughts, contrastive     three thoughts and InfoNCE, as in GIRCSE
    without latent view       one state, taught by the explicit view
    without ...               LaSER with one term less

The peer of every row is "contrastive only". No time is measured.
"""

from __future__ import annotations

import argparse
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.record import record
from jaxrec.artifact import say
from jaxrec.methods.dense.laser import LaSER
from jaxrec.methods.dense.last_token import last
from jaxrec.nn.language_model import LanguageModel
from jaxrec.optimizer import Adam
from jaxrec.train.step import initial_state, update

ENTITIES, RELATIONS, STEPS, BATCH = 20, 4, 600, 64
END, FIRST = 1, 2  # the end of a text and of a step of reasoning; the number of the first entity, relations come after the last. 0 is padding
MODEL = LanguageModel(vocabulary=FIRST + ENTITIES + RELATIONS, dim=64, layers=2, heads=4, hidden=128, length=16)
PLAIN = {"teacher": 0.0, "distillation": 0.0, "trajectory": 0.0}
CHANGES: dict[str, dict[str, Any]] = {
    "contrastive only": {"thoughts": 1, **PLAIN},
    "LaSER": {},
    "thoughts, contrastive": PLAIN,
    "without latent view": {"thoughts": 1},
    "without output distillation": {"distillation": 0.0},
    "without trajectory": {"trajectory": 0.0},
    "without the explicit view's contrastive term": {"teacher": 0.0},
}


def queries(seed: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """All queries, those to train on and those held out: `query` [n, 4], `document` [n, 2], `reasoning` and `step` [n, 12], `answer` [n] from 0."""
    random = np.random.default_rng(seed)
    maps = random.permuted(np.tile(np.arange(ENTITIES), (RELATIONS, 1)), axis=1)  # [R, N]
    a, r, s = (axis.reshape(-1, 1) for axis in np.meshgrid(np.arange(ENTITIES), np.arange(RELATIONS), np.arange(RELATIONS), indexing="ij"))
    b = maps[r, a]
    c = maps[s, b]
    end, word, relation = np.full_like(a, END), FIRST, FIRST + ENTITIES
    query = np.concatenate([a + word, r + relation, s + relation, end], axis=1)
    steps = [a + word, r + relation, b + word, end, b + word, s + relation, c + word, end]
    step = np.zeros((len(a), 12), bool)
    step[:, [7, 11]] = True
    made = {"query": query, "document": np.concatenate([c + word, end], axis=1), "reasoning": np.concatenate([query, *steps], axis=1), "step": step}
    made["answer"] = c[:, 0]
    order = random.permutation(len(a))
    held_out = len(a) // 4
    return tuple({name: array[rows] for name, array in made.items()} for rows in (order[held_out:], order[:held_out]))  # type: ignore[return-value]


def batches(train: dict[str, np.ndarray], seed: int) -> dict[str, np.ndarray]:
    """Training batches [STEPS, BATCH, ...], of queries drawn at random."""
    rows = np.random.default_rng(seed).integers(len(train["answer"]), size=(STEPS, BATCH))
    made = {name: array[rows] for name, array in train.items()}
    return made | {"query_row": rows, "document_row": made.pop("answer"), "mask": np.ones(rows.shape, np.float32)}


@functools.partial(jax.jit, static_argnums=0)
def train(method: LaSER, batches: dict[str, jax.Array], key: jax.Array) -> tuple[Any, jax.Array]:
    """Parameters [S, ...] after all batches [S, STEPS, ...] of S seeds, and the share of each batch's queries whose document was first [S, STEPS]."""
    tx = Adam(peak=2e-3, warmup=0.1, decay="linear", clip=1.0).build(STEPS)

    def one(batches: dict[str, jax.Array], key: jax.Array) -> tuple[Any, jax.Array]:
        def step(state: Any, batch: dict[str, jax.Array]) -> tuple[Any, jax.Array]:
            state, metrics = update(method, tx, state, batch)
            return state, metrics["hits"]

        state, hits = jax.lax.scan(step, initial_state(method, tx, key), batches)
        return state.params, hits

    return jax.vmap(one)(batches, key)


@functools.partial(jax.jit, static_argnums=0)
def found(method: LaSER, params: Any, query: jax.Array, reasoning: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The document [S, n] that is first for each query, and for its explicit view."""
    document = jnp.stack([FIRST + jnp.arange(ENTITIES), jnp.full(ENTITIES, END)], axis=1)

    def one(params: Any, query: jax.Array, reasoning: jax.Array) -> tuple[jax.Array, jax.Array]:
        documents = method.encode_item(params, {"document": document}).values[:, 0]
        explicit = params.decoder(reasoning)[jnp.arange(len(reasoning)), last(reasoning != method.pad)]
        asked = method.encode_query(params, {"query": query}).values[:, 0]
        return (asked @ documents.T).argmax(axis=1), (explicit @ documents.T).argmax(axis=1)

    return jax.vmap(one)(params, query, reasoning)


def measure(name: str, count: int) -> dict[str, list[float]]:
    """The shares of held-out queries whose document is first, by seed: "hits", and "explicit", of the explicit view."""
    method = LaSER(**({"encoder": MODEL, "pad": 0} | CHANGES[name]))
    drawn = [queries(seed) for seed in range(count)]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *(batches(learnt, seed) for seed, (learnt, _) in enumerate(drawn)))
    params, hits = train(method, stacked, jax.vmap(jax.random.key)(jnp.arange(count)))
    held_out = {key: np.stack([rest[key] for _, rest in drawn]) for key in ("query", "reasoning", "answer")}
    latent, explicit = found(method, params, held_out["query"], held_out["reasoning"])
    curve = " ".join(f"{part.mean():.2f}" for part in np.array_split(np.asarray(hits), 10, axis=1))
    shares = {key: (np.asarray(first) == held_out["answer"]).mean(axis=1).round(4).tolist() for key, first in (("hits", latent), ("explicit", explicit))}
    say(f"  {name}: {shares['hits']}, explicit view {shares['explicit']}; in training {curve}")
    return shares


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="how often each system is trained")
    count = parser.parse_args().seeds
    results = {name: measure(name, count) for name in CHANGES}
    record("laser_toy", rows(results, count))


def rows(results: dict[str, dict[str, list[float]]], count: int) -> list[dict[str, Any]]:
    """A row of each system, beside "contrastive only"."""
    peer = float(np.mean(results["contrastive only"]["hits"]))
    made = []
    for name, shares in results.items():
        row = {"name": f"two links to follow, {name}, {count} seeds", "ours": round(float(np.mean(shares["hits"])), 4), "peer": round(peer, 4)}
        made.append(row | {"unit": "hits@1", "deviation": round(float(np.std(shares["hits"])), 4), "each": shares["hits"], "explicit": shares["explicit"]})
    return made


if __name__ == "__main__":
    main()
