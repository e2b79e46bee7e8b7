"""LaSER where it should help: a document is found by two steps of reasoning, and what each part of it is worth.

    python -m benchmarks.laser_toy --seeds 5

A query holds the links of three chains a -> b -> c in any order, then where one of them begins; the document that answers it is the end of that chain. Its
reasoning is "a b", "b c". Entities are drawn anew for each query, so there is nothing to remember: a model has to learn to follow links. All systems are
the same decoder of two layers from scratch, with the same steps and batches; held-out queries, all entities as documents.

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

ENTITIES, CHAINS, STEPS, BATCH, HELD_OUT = 24, 3, 3000, 64, 1000
END = 1  # of a text and of a step of reasoning; 0 is padding, and entities are numbered from 2
MODEL = LanguageModel(vocabulary=2 + ENTITIES, dim=64, layers=2, heads=4, hidden=128, length=32)
LASER = LaSER(encoder=MODEL, pad=0)
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


def queries(count: int, seed: int) -> dict[str, np.ndarray]:
    """`query` [n, 2 E + 2] of E links, `document` [n, 2], `reasoning` and its `step` [n, 2 E + 8]; and the number of the document, `answer` [n]."""
    random = np.random.default_rng(seed)
    chains = random.permuted(np.tile(np.arange(ENTITIES), (count, 1)), axis=1)[:, : 3 * CHAINS].reshape(count, CHAINS, 3)
    links = np.concatenate([chains[:, :, :2], chains[:, :, 1:]], axis=1)  # [n, E, 2]
    order = random.permuted(np.tile(np.arange(2 * CHAINS), (count, 1)), axis=1)
    links = np.take_along_axis(links, order[:, :, None], axis=1).reshape(count, -1) + 2
    a, b, c = (2 + chains[:, 0]).T[:, :, None]  # [n, 1] each
    end = np.full((count, 1), END)
    query, thought = np.concatenate([links, a, end], axis=1), np.concatenate([a, b, end, b, c, end], axis=1)
    reasoning = np.concatenate([query, thought], axis=1)
    step = np.zeros(reasoning.shape, bool)
    step[:, [-4, -1]] = True
    return {"query": query, "document": np.concatenate([c, end], axis=1), "reasoning": reasoning, "step": step, "answer": chains[:, 0, 2]}


def batches(seed: int) -> dict[str, np.ndarray]:
    """All training batches, [STEPS, BATCH, ...]; no two queries are the same one."""
    made = queries(STEPS * BATCH, seed)
    answer, rows = made.pop("answer"), STEPS * BATCH
    made |= {"query_row": np.arange(rows), "document_row": answer, "mask": np.ones(rows, np.float32)}
    return {name: array.reshape(STEPS, BATCH, *array.shape[1:]).astype(np.int32 if array.dtype == np.int64 else array.dtype) for name, array in made.items()}


@functools.partial(jax.jit, static_argnums=0)
def train(method: LaSER, batches: dict[str, jax.Array], key: jax.Array) -> tuple[Any, jax.Array]:
    """Parameters after all batches, and the share of each batch's queries whose document was first."""
    tx = Adam(peak=1e-3, warmup=0.1, decay="linear", clip=1.0).build(STEPS)

    def step(state: Any, batch: dict[str, jax.Array]) -> tuple[Any, jax.Array]:
        state, metrics = update(method, tx, state, batch)
        return state, metrics["hits"]

    state, hits = jax.lax.scan(step, initial_state(method, tx, key), batches)
    return state.params, hits


@functools.partial(jax.jit, static_argnums=0)
def found(method: LaSER, params: Any, query: jax.Array, reasoning: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The document [n] that is first for each query, and for its explicit view."""
    document = jnp.stack([2 + jnp.arange(ENTITIES), jnp.full(ENTITIES, END)], axis=1)
    documents = method.encode_item(params, {"document": document}).values[:, 0]
    explicit = params.decoder(reasoning)[jnp.arange(len(reasoning)), last(reasoning != method.pad)]
    asked = method.encode_query(params, {"query": query}).values[:, 0]
    return (asked @ documents.T).argmax(axis=1), (explicit @ documents.T).argmax(axis=1)


def measure(name: str, seeds: range) -> dict[str, list[float]]:
    """The shares of held-out queries whose document is first, by seed: "hits", and "explicit", of the explicit view."""
    method = LaSER(**{field: getattr(LASER, field) for field in ("encoder", "pad")} | CHANGES[name])
    shares: dict[str, list[float]] = {"hits": [], "explicit": []}
    held_out = queries(HELD_OUT, seed=10**6)
    for seed in seeds:
        params, hits = train(method, batches(seed), jax.random.key(seed))
        latent, explicit = found(method, params, held_out["query"], held_out["reasoning"])
        shares["hits"].append(round(float((latent == held_out["answer"]).mean()), 4))
        shares["explicit"].append(round(float((explicit == held_out["answer"]).mean()), 4))
        curve = " ".join(f"{part.mean():.2f}" for part in np.array_split(np.asarray(hits), 10))
        say(f"  {name}, seed {seed}: {shares['hits'][-1]:.3f}, explicit {shares['explicit'][-1]:.3f}; in training {curve}")
    return shares


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    count = parser.parse_args().seeds
    results = {name: measure(name, range(count)) for name in CHANGES}
    peer = float(np.mean(results["contrastive only"]["hits"]))
    rows = []
    for name, shares in results.items():
        mean, deviation = float(np.mean(shares["hits"])), float(np.std(shares["hits"]))
        title = f"two links to follow, {name}, mean of {count} seeds"
        row = {"name": title, "ours": round(mean, 4), "peer": round(peer, 4), "unit": "hits@1", "deviation": round(deviation, 4)}
        rows.append(row | {"seeds": shares["hits"], "explicit_view": shares["explicit"]})
    record("laser_toy", rows)


if __name__ == "__main__":
    main()
