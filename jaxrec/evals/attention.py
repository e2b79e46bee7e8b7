"""What attention does with its keys: zeros, sinks and dead rows, over all layers of a decoder."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxrec.nn.attention import hide, scores
from jaxrec.nn.context import packed
from jaxrec.nn.language_model import Decoder
from jaxrec.nn.weights import HIDDEN

SINK = 0.3
"""Mean share of a row's absolute weight on the first token from which a head counts as a sink (Gu et al. 2024, arXiv 2410.10781)."""


def attention_shares(params: Decoder, ids: jax.Array) -> dict[str, jax.Array]:
    """Statistics of the weights of whole rows [B, T], means over layers and heads.

    Returns:
      "zero weights": share of the visible keys whose weight is exactly zero; "dead rows": share of the rows all of whose weights are;
      "sink heads": share of the heads that give the first token more than `SINK` of a row's absolute weight on average over the rows past the first
      quarter; "first token": that weight's mean.
    """
    T = ids.shape[1]
    place = jnp.arange(T)
    context = packed(jnp.ones_like(ids), causal=True, bias=None if params.bias is None else params.bias(place, place))
    x, found = params.embed(ids), []
    for layer in params.unstacked().rest:
        attention = layer.attention
        q, k, _ = attention.project(layer.attention_norm(x))
        bias = attention.hide_far(hide(context.mask), context)
        weights = jnp.abs(attention.weights(scores(q, k), bias))  # [B, H, T, T]
        visible = jnp.broadcast_to(bias > HIDDEN / 2, weights.shape)
        total = jnp.sum(weights, axis=-1)  # [B, H, T]
        first = (weights[..., 0] / jnp.maximum(total, 1e-30))[..., T // 4 :]
        found.append(
            {
                "zero weights": jnp.sum(visible & (weights == 0)) / jnp.sum(visible),
                "dead rows": jnp.mean(total == 0),
                "sink heads": jnp.mean(jnp.mean(first, axis=(0, 2)) > SINK),
                "first token": jnp.mean(first),
            }
        )
        x = layer(x, context)
    return {name: jnp.mean(jnp.stack([layer[name] for layer in found])) for name in found[0]}
