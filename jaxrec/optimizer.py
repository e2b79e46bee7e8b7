"""Optimizer: the optax chain of a run, with schedules in fractions of it, so `--steps` never breaks one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import jax
import optax

from jaxrec.limits import POSITIVE, SHARE, check
from jaxrec.param import Param, Tree

Decay = Literal["constant", "linear", "cosine"]


@dataclass(frozen=True)
class Adam:
    """AdamW (Kingma & Ba 2015, arXiv 1412.6980; Loshchilov & Hutter 2019, arXiv 1711.05101) with warm-up and decay.

    Attributes:
      peak: learning rate after warm-up.
      warmup: share of the steps over which it rises linearly from 0.
      decay: what it does after: stay, or fall to `final` times the peak.
      final: see `decay`.
      b1, b2: decay of the first and second moments.
      weight_decay: decoupled, on matrices and tables; vectors (biases, scales) are left alone.
      clip: largest global norm of the gradient; 0 = no clipping.
    """

    peak: float = 1e-3
    warmup: float = 0.02
    decay: Decay = "constant"
    final: float = 0.0
    b1: float = 0.9
    b2: float = 0.98
    weight_decay: float = 0.0
    clip: float = 0.0

    def __post_init__(self):
        check(self, peak=POSITIVE, warmup=SHARE, final=0, b1=(0, 1), b2=(0, 1), weight_decay=0, clip=0)
        if self.decay not in get_args(Decay):
            raise ValueError(f"Adam: decay={self.decay!r} must be one of {', '.join(get_args(Decay))}")

    def schedule(self, steps: int) -> optax.Schedule:
        """Learning rate by step for a run of `steps`."""
        rise = round(self.warmup * steps)
        rest = max(steps - rise, 1)
        fall = {
            "constant": optax.constant_schedule(self.peak),
            "linear": optax.linear_schedule(self.peak, self.final * self.peak, rest),
            "cosine": optax.cosine_decay_schedule(self.peak, rest, self.final),
        }[self.decay]
        return optax.join_schedules([optax.linear_schedule(0.0, self.peak, rise), fall], [rise]) if rise else fall

    def build(self, steps: int, spec: Tree = None) -> optax.GradientTransformation:
        """The optax transformation of a run of `steps`; weight decay needs the `spec` to tell matrices from stacked vectors."""
        parts = [optax.clip_by_global_norm(self.clip)] if self.clip else []
        parts.append(optax.scale_by_adam(self.b1, self.b2))
        if self.weight_decay:
            if spec is None:
                raise ValueError(f"Adam with weight_decay={self.weight_decay} needs the spec of the parameters; call build(steps, spec)")
            parts.append(optax.add_decayed_weights(self.weight_decay, mask=_matrices(spec)))
        return optax.chain(*parts, optax.scale_by_learning_rate(self.schedule(steps)))


def _matrices(spec: Tree) -> Tree:
    """True for matrices and tables, False for vectors, stacked over layers or not; None where nothing is trained."""
    return jax.tree.map(
        lambda param: len(param.axes) - param.axes.count("layers") > 1 if param.trainable else None, spec, is_leaf=lambda leaf: isinstance(leaf, Param)
    )
