"""Parts: dropout, norms, attention masks, the scanned stack."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec.nn.attention import Attention, hide, weigh
from jaxrec.nn.context import Context, visible
from jaxrec.nn.linear import Linear, dropout
from jaxrec.nn.norm import LayerNorm
from jaxrec.nn.transformer import UNROLLED, Stack, TransformerBlock
from jaxrec.nn.weights import Softmax
from jaxrec.param import create


def test_dropout_keeps_the_mean_and_the_share_and_is_off_without_a_key():
    x = jnp.ones((200, 200))
    for rate in (0.1, 0.5):
        y = np.asarray(dropout(x, rate, jax.random.key(0)))
        assert abs((y == 0).mean() - rate) < 0.01
        assert abs(y.mean() - 1) < 0.01
    assert dropout(x, 0.5, None) is x and dropout(x, 0.0, jax.random.key(0)) is x


def test_linear_and_norm_are_their_formulas():
    random = np.random.default_rng(0)
    x = random.normal(size=(2, 3, 4)).astype(np.float32)
    linear = create(Linear.spec(4, 5), jax.random.key(0))
    linear = dataclasses.replace(linear, bias=jnp.arange(5.0))
    np.testing.assert_allclose(linear(x), x @ np.asarray(linear.kernel) + np.arange(5), rtol=1e-5, atol=1e-6)
    norm = create(LayerNorm.spec(4), jax.random.key(0))
    wanted = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(norm(x), wanted, rtol=1e-4, atol=1e-5)


def test_visible_by_brute_force():
    segment = np.array([[1, 1, 2, 2, 2, 0, 0]])
    for causal in (True, False):
        got = np.asarray(visible(jnp.asarray(segment), causal=causal))[0, 0]
        for query in range(7):
            for key in range(7):
                assert got[query, key] == (segment[0, query] == segment[0, key] and (key <= query or not causal))


def test_attention_is_the_formula():
    attention = create(Attention.spec(8, 2), jax.random.key(0))
    segment = jnp.asarray([[1, 1, 1, 2, 2, 0]])
    x = np.asarray(jax.random.normal(jax.random.key(1), (1, 6, 8)))
    got = attention(x, Context(segment, visible(segment, causal=True)))
    q, k, v = np.moveaxis((x @ np.asarray(attention.qkv.kernel)).reshape(1, 6, 3, 2, 4), 2, 0)
    scores = np.einsum("bthk,bshk->bhts", q, k) / 2
    scores = np.where(np.asarray(visible(segment, causal=True)), scores, -np.inf)
    weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    mixed = np.einsum("bhts,bshk->bthk", weights, v).reshape(1, 6, 8)
    np.testing.assert_allclose(got, mixed @ np.asarray(attention.output.kernel) + np.asarray(attention.output.bias), rtol=1e-4, atol=1e-5)


def test_causal_blocks_leave_out_only_what_is_masked():
    q, k, v = jax.random.normal(jax.random.key(0), (3, 2, 150, 2, 4))
    segment = jnp.asarray(np.repeat([[1, 2, 0], [1, 1, 2]], [50, 50, 50], axis=1))
    mask = visible(segment, causal=True)

    def both(q, k, v):
        return [weigh(Softmax(), *Softmax().prepare(q, k), v, hide(mask), causal=causal) for causal in (True, False)]

    np.testing.assert_allclose(*both(q, k, v), rtol=1e-5, atol=1e-6)
    wanted = jax.nn.dot_product_attention(q, k, v, mask=mask)
    np.testing.assert_allclose(both(q, k, v)[0], wanted, rtol=1e-5, atol=1e-6)
    gradients = [jax.grad(lambda *x, n=n: jnp.sum(jnp.sin(both(*x)[n])), argnums=(0, 1, 2))(q, k, v) for n in (0, 1)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), *gradients)


def test_a_stack_is_its_layers_in_turn_unrolled_or_scanned():
    segment = jnp.ones((2, 4), jnp.int32)
    x = jax.random.normal(jax.random.key(1), (2, 4, 8))
    for depth in (2, UNROLLED + 1):
        stack = create(Stack.spec(TransformerBlock.spec(8, 2, 8, 0.5), depth), jax.random.key(0))
        context = Context(segment, visible(segment, causal=True), jax.random.key(2))

        @jax.jit
        def one_by_one(stack, x, depth=depth, context=context):
            states = [x]
            for number in range(depth):
                layer = jax.tree.map(lambda leaf, n=number: leaf[n], stack.layers)
                states.append(layer(states[-1], dataclasses.replace(context, key=jax.random.fold_in(context.key, number))))
            return states

        _, early, *_, wanted = one_by_one(stack, x)
        run = jax.jit(lambda x, context, **options: stack(x, context, **options), static_argnames=("until", "between"))  # noqa: B023
        np.testing.assert_allclose(run(x, context), wanted, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(run(x, context, until=1), early, rtol=1e-5, atol=1e-5)
        doubled = run(x, context, between=lambda layer, x, context: jnp.where(layer == 0, 2 * x, x))
        np.testing.assert_allclose(doubled, run(2 * x, context), rtol=1e-5, atol=1e-5)
