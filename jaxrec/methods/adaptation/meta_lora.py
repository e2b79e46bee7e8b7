"""Meta-LoRA: retraining a model for the adapters that come later (Block et al. 2024, arXiv 2410.22264).

    standard    min over theta of sum_t L_t(theta)
    Meta-LoRA   min over theta of sum_t min over phi_t of L_t(theta + Delta(phi_t))
    adaptation  min over phi of L_new(theta + Delta(phi)),  theta as it is

In Meta-LoRA every task has an adapter of its own while the base learns, so the base need not be a compromise between the tasks, and a later task finds it a low
rank away. One optimiser moves base and adapters at once, without second derivatives. The tasks here are binary questions about a text: does this reply
go on with that context? What we changed: a batch mixes tasks, and each row goes through its task's adapter; the reference alternates between batches of one.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from jaxrec.limits import check
from jaxrec.method import FROM_DATA, Array, Batch, Loss, Method, Predictor
from jaxrec.nn.bert import BERT, PostNormEncoder
from jaxrec.nn.lora import Adapters, LoRA
from jaxrec.param import Param, Tree, freeze, normal, zeros

NO_GRADIENT = ("qkv.a", "output.a", "inner.a", "outer.a")
"""Leaves that the first step does not reach: their factor B is still 0."""


@struct.dataclass
class TaskHeads:
    """<w_t, x> + b_t, a score for each task t."""

    kernel: Array  # [tasks, D]
    bias: Array  # [tasks]

    @classmethod
    def spec(cls, tasks: int, width: int) -> TaskHeads:
        return cls(Param((tasks, width), (None, "embed"), normal(0.02)), Param((tasks,), (None,), zeros))  # type: ignore[arg-type]

    def __call__(self, x: Array, task: Array) -> Array:
        """[B, D] of tasks [B] -> [B] float32."""
        return jnp.einsum("bd,bd->b", x, self.kernel[task].astype(x.dtype), preferred_element_type=jnp.float32) + self.bias[task]


@struct.dataclass
class TaskModel:
    """A text encoder, and of every task an adapter and a head."""

    base: PostNormEncoder
    adapters: Adapters  # without any: the base alone
    head: TaskHeads


@dataclass(frozen=True)
class MetaLoRA(Method, Predictor):
    """A text classifier for many tasks. Batches hold `text` [B, T] word pieces, `task` [B], `label` [B] 0 or 1, `mask` [B], and of pairs `type` [B, T].

    The three problems are three settings: Meta-LoRA is the default; `lora=None` is standard retraining, in which the tasks share everything; and
    `adapt=True` keeps the base as `Experiment.init_from={"base": ...}` brings it, and gives new tasks fresh adapters and heads.

    Attributes:
      encoder: of texts; the state of their first token is classified.
      tasks: how many.
      pad: the word piece that fills up rows.
      lora: the adapters of a task (`lora.adapters` is the number of tasks, and set here); None: no adapters, and one head.
      adapt: the base is frozen.
    """

    encoder: BERT = field(default_factory=BERT)
    tasks: int = FROM_DATA
    pad: int = FROM_DATA
    lora: LoRA | None = field(default_factory=LoRA)
    adapt: bool = False

    def __post_init__(self):
        if self.tasks != FROM_DATA:
            check(self, tasks=1)

    def spec(self) -> Tree:
        base = self.encoder.spec()
        lora = self._lora()
        heads = TaskHeads.spec(self.tasks if lora else 1, self.encoder.dim)
        return TaskModel(freeze(base) if self.adapt else base, lora.spec(base) if lora else {}, heads)

    def predict(self, params: Tree, batch: Batch, key: Array | None = None) -> Array:
        """[B] logits of the label 1."""
        lora, text = self._lora(), batch["text"]
        task = batch["task"] if lora else jnp.zeros(len(text), jnp.int32)
        encoder = lora.attach(params.base, params.adapters, task) if lora else params.base
        return params.head(encoder(text, text != self.pad, batch.get("type"), key)[:, 0], task)

    def loss(self, params: Tree, batch: Batch, key: Array) -> Loss:
        """Term "classification": the mean binary cross-entropy. Every task weighs as much as it has rows."""
        logits = self.predict(params, batch, key)
        sign = 2 * batch["label"].astype(jnp.float32) - 1
        weight = batch["mask"]
        right = (logits * sign > 0).astype(jnp.float32)
        return Loss({"classification": (jax.nn.softplus(-sign * logits) @ weight, weight.sum())}, {"accuracy": (right @ weight, weight.sum())})

    def _lora(self) -> LoRA | None:
        return dataclasses.replace(self.lora, adapters=self.tasks) if self.lora else None


def tiny() -> tuple[MetaLoRA, dict[str, Any]]:
    """A small case for the contract tests."""
    random = jax.random.split(jax.random.key(5), 2)
    encoder = BERT(vocabulary=48, length=10, dim=16, layers=1, heads=2, hidden=32, types=2, dropout=0.0)
    text = jax.random.randint(random[0], (6, 10), 1, 48).at[1, 7:].set(0)
    rows = {"task": jnp.arange(6) % 3, "label": jnp.array([1, 0, 0, 1, 1, 0]), "type": (jnp.arange(10)[None] > 4) * jnp.ones((6, 1), jnp.int32)}
    return MetaLoRA(encoder=encoder, tasks=3, pad=0, lora=LoRA(rank=2, alpha=4.0)), {"text": text, **rows, "mask": jnp.ones(6)}
