"""Token prepending: rows written out by hand, which block sees which by derivatives, and the equations in NumPy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.nn import token_prepending
from jaxrec.nn.attention import AttentionKind
from jaxrec.nn.language_model import LanguageModel
from jaxrec.nn.token_prepending import PLACEHOLDER, TokenPrepending, batch, embed, inputs, lay_out, prepending, states
from jaxrec.param import create, flatten, unflatten

P = PLACEHOLDER
MODEL = LanguageModel(vocabulary=40, dim=16, layers=4, heads=4, hidden=24, length=64, attention=AttentionKind(positions="rotary", groups=2), scale=2.0)
TEXT, ENDS = list(range(11, 23)), [3, 6, 9, 12]  # 4 blocks of 3 tokens
BARE = ([], [])
PROMPT = ([1, 2], [3])
BLOCKS = ("tp_sentence", "htp", "htp_omit")
WIDTH = 24


@pytest.fixture(scope="module")
def params():
    leaves = flatten(create(MODEL.spec(), jax.random.key(0)))
    noise = np.random.default_rng(0)
    return unflatten(MODEL.spec(), {name: np.asarray(leaf) + 0.2 * noise.normal(size=leaf.shape).astype(np.float32) for name, leaf in leaves.items()})


def options(plan, **others):
    return TokenPrepending(plan, **({"exit": 3, "max_blocks": 4} | others))


def row(plan, text=TEXT, ends=ENDS, pieces=PROMPT, length=64, **others):
    return lay_out(options(plan, **others), [*pieces[:1], [4], *pieces[1:]] if plan == "echo" else pieces, text, ends, length=length)


words = jax.jit(inputs)


@jax.jit
def hidden(params, rows, x, start, exit):  # noqa: A002
    """One program for all plans."""
    return states(params, rows, x, start=start, exit=exit, until=4)


@jax.jit
def sensitivity(params, rows, x, start, exit):  # noqa: A002
    """[U, T] how much the state at t changes with the input at u, along one direction for each u."""
    direction = jax.random.normal(jax.random.key(1), x.shape[1:])

    def along(u):
        tangent = jnp.zeros_like(x).at[0, u].set(direction[u])
        return jnp.abs(jax.jvp(lambda x: states(params, rows, x, start=start, exit=exit, until=4), (x,), (tangent,))[1][0]).sum(-1)

    return jax.vmap(along)(jnp.arange(x.shape[1]))


def filled(plan, rows):
    """As `batch`, of the same shape for every plan."""
    found = batch(options(plan), rows, width=WIDTH)
    places = [np.pad(own, ((0, 0), (0, 4 - own.shape[1])), constant_values=WIDTH) for own in (found.front, found.own, found.end)]
    return found._replace(front=places[0], own=places[1], end=places[2])


def reach(params, plan, start, exit):  # noqa: A002
    """[4, 4, 3, 3]: whether block b [0] feels token [3] of block c [1] at its token [2]."""
    rows = filled(plan, [row(plan, pieces=BARE)])
    found = np.asarray(sensitivity(params, rows, words(params, rows.ids), start, exit))
    place = [int(np.flatnonzero(rows.ids[0] == token)[0]) for token in TEXT]
    return found[np.ix_(place, place)].T.reshape(4, 3, 4, 3).transpose(0, 2, 1, 3) != 0


def test_rows_are_as_the_plans_say():
    text, ends = [11, 12, 13, 14, 15], [2, 5]
    cases = {
        "vanilla": ([1, 2, 11, 12, 13, 14, 15, 3], [], [], [3, 7]),
        "echo": ([1, 2, 11, 12, 13, 14, 15, 4, 11, 12, 13, 14, 15, 3], [], [], None),
        "prompt_eol": ([1, 2, 11, 12, 13, 14, 15, 3], [], [], None),
        "tp": ([1, 2, P, 11, 12, 13, 14, 15, 3], [], [2], [8]),
        "tp_sentence": ([1, 2, P, 11, 12, P, 13, 14, 15, 3], [], [2, 5], [4, 9]),
        "htp": ([1, 2, P, P, P, 11, 12, P, 13, 14, 15, 3], [2, 3], [4, 7], [6, 11]),
        "htp_omit": ([1, 2, P, P, 11, 12, 13, 14, 15, 3], [2, 3], [], [5, 9]),
    }
    for plan, (ids, front, own, end) in cases.items():
        found = row(plan, text, ends)
        np.testing.assert_array_equal(found.ids, ids)
        assert (found.front.tolist(), found.own.tolist(), found.cut) == (front, own, False)
        if plan not in ("vanilla", "echo", "prompt_eol"):
            assert found.end.tolist() == end
            bare = row(plan, text, ends, last_block_end="text").end
            assert bare.tolist() == [*end[:-1], end[-1] - 1]
            for stop, following in zip(bare, [P] * (len(end) - 1) + [3], strict=True):
                assert found.ids[stop] in (12, 15) and (plan == "htp_omit" or found.ids[stop + 1] == following)
            assert row(plan, text, ends, pieces=BARE).end[-1] == len(found.ids) - 4  # no suffix: the text's last token


def test_the_tokens_of_the_text_alone_are_pooled():
    for plan in ("vanilla", "echo", "tp", *BLOCKS):
        found = row(plan)
        np.testing.assert_array_equal(found.ids[found.pooled], TEXT)
        assert np.flatnonzero(found.pooled)[0] > len(TEXT) or plan != "echo"  # the second time
        last = row(plan, pooling="last")
        assert np.flatnonzero(last.pooled).tolist() == [len(last.ids) - 1]
    assert np.flatnonzero(row("prompt_eol").pooled).tolist() == [14]
    for plan in ("vanilla", "echo", "tp", *BLOCKS):
        empty = row(plan, [], [])
        assert not empty.pooled.any() and not len(empty.end) and PLACEHOLDER not in empty.ids


def test_a_text_is_cut_so_that_its_placeholders_fit():
    for plan, each in (("vanilla", 0), ("tp", 0), ("tp_sentence", 1), ("htp", 2), ("htp_omit", 1)):
        for length in range(8, 26):
            found = row(plan, length=length)
            kept = int(found.pooled.sum())
            wanted = max(m for m in range(13) if 3 + m + each * -(-m // 3) + (plan == "tp") <= length)
            assert (len(found.ids) <= length, kept, found.cut) == (True, wanted, wanted < 12), (plan, length)
            np.testing.assert_array_equal(found.ids[found.pooled], TEXT[:kept])
    assert [int(row("echo", length=length).pooled.sum()) for length in (6, 7, 27, 28)] == [1, 1, 11, 12]


def test_too_many_blocks_are_joined_with_their_neighbours():
    text = list(range(1, 36))
    for count, most, wanted in ((35, 4, [8, 17, 26, 35]), (5, 4, [1, 2, 3, 35]), (4, 4, [1, 2, 3, 35]), (3, 1, [35])):
        ends = [*range(1, count), 35]
        found = row("htp", text, ends, BARE, last_block_end="text", max_blocks=most)
        assert [found.ids[end] for end in found.end] == wanted and len(found.front) == len(found.own) == len(wanted)
    # The budget too is that of the blocks that are left.
    assert row("htp", text, list(range(1, 36)), BARE, length=35 + 8).cut is False


def test_which_block_feels_which(params):
    lower, dense = np.tril(np.ones((4, 4), bool)), np.ones((4, 4), bool)
    for start, exit in ((1, 3), (1, 2), (2, 4)):  # noqa: A001
        for plan, wanted in (("vanilla", lower), ("tp_sentence", lower), ("tp", dense), ("htp", dense), ("htp_omit", dense)):
            found = reach(params, plan, start, exit)
            np.testing.assert_array_equal(found.any((2, 3)), wanted, err_msg=f"{plan} {start} {exit}")
            if plan in ("htp", "tp", "htp_omit"):
                assert found.all(), plan  # every token feels every other
        own = reach(params, "tp_sentence", start, exit)
        assert all(own[block, block].all() for block in range(4))  # backwards within a block
    assert not reach(params, "vanilla", 1, 3)[0, 0, 0, 1]


def test_at_layer_0_a_summary_is_the_last_word_alone(params):
    lower, dense = np.tril(np.ones((4, 4), bool)), np.ones((4, 4), bool)
    for plan in ("htp", "htp_omit", "tp"):
        found = reach(params, plan, 0, 1)
        of_last = dense if plan != "tp" else lower | (np.arange(4) == 3)[None]
        np.testing.assert_array_equal(found[..., 2].any(2), of_last)
        np.testing.assert_array_equal(found[..., 0].any(2), lower)
    assert reach(params, "htp", 0, 2).any((2, 3)).all()


def test_without_layers_to_write_before_a_plan_is_vanilla_on_the_same_ids(params):
    for plan in ("tp", *BLOCKS):
        rows = filled(plan, [row(plan)])
        x = words(params, rows.ids)
        nobody = np.full_like(rows.front, WIDTH)
        plain = hidden(params, rows._replace(front=nobody, own=nobody, end=nobody), x, 1, 3)
        for start, exit in ((1, 1), (3, 2), (4, 4)):  # noqa: A001
            np.testing.assert_array_equal(hidden(params, rows, x, start, exit), plain)
        assert np.abs(np.asarray(hidden(params, rows, x, 1, 3) - plain)).max() > 1e-3


def test_htp_of_one_block_is_tp_with_its_summary_twice(params):
    one = row("htp", ends=[12])
    tp = row("tp", ends=ENDS)
    twice = tp._replace(ids=np.insert(tp.ids, 2, P), pooled=np.insert(tp.pooled, 2, False), front=tp.own, own=tp.own + 1, end=tp.end + 1)
    for wanted, found in zip(twice, one, strict=True):
        np.testing.assert_array_equal(found, wanted)
    omitted = row("htp_omit", ends=[12])
    np.testing.assert_array_equal(omitted.ids, tp.ids)
    outputs = [hidden(params, filled(plan, [each]), words(params, filled(plan, [each]).ids), 1, 3) for plan, each in (("tp", tp), ("htp_omit", omitted))]
    np.testing.assert_array_equal(*outputs)


def test_placeholders_are_the_mean_of_the_words(params):
    rows = filled("htp", [row("htp")])
    found = np.asarray(words(params, rows.ids))[0]
    table = np.asarray(params.word.table)[:40]
    np.testing.assert_allclose(found[2], 2.0 * table.mean(0), rtol=1e-5)
    np.testing.assert_allclose(found[0], 2.0 * table[1], rtol=1e-6)


def test_all_summaries_are_read_before_any_is_written(params):
    """The end of the first block is made a place that is written too: the second block must get what was there before."""
    rows = batch(options("htp"), [row("htp")], width=WIDTH)
    rows = rows._replace(end=rows.end.copy())
    rows.end[0, 1] = rows.front[0, 0]
    x = jax.random.normal(jax.random.key(2), (1, WIDTH, 16))
    written = np.array(x)
    for block in range(4):
        for place in (rows.front[0, block], rows.own[0, block]):
            written[0, place] = np.asarray(x)[0, rows.end[0, block]]
    turned = rows._replace(front=rows.front[:, ::-1], own=rows.own[:, ::-1], end=rows.end[:, ::-1])
    run = jax.jit(lambda rows, layer: prepending(rows, 1, 3)(layer, x, None))
    for one in (rows, turned):
        for layer, wanted in ((0, x), (1, written), (2, written), (3, x)):
            np.testing.assert_array_equal(run(one, layer), wanted)


def test_a_vector_does_not_depend_on_padding_or_company(params):
    chosen = options("htp")
    run = jax.jit(embed, static_argnums=1)
    rows = [row("htp"), row("htp", TEXT[:4], [3, 4]), row("htp", [], [])]
    together = np.asarray(run(params, chosen, batch(chosen, rows, width=48, size=4)))
    alone = np.asarray(run(params, chosen, batch(chosen, rows[1:2], width=16)))
    np.testing.assert_allclose(together[1], alone[0], atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), [1, 1, 0, 0], atol=1e-6)
    bare = batch(chosen, rows[:1], width=23)  # no padding: no segment
    found = jax.jit(lambda params: params(embeddings=inputs(params, bare.ids), between=prepending(bare, 1, 3), until=3))(params)
    mean = np.asarray(found)[0][rows[0].pooled].mean(0)
    np.testing.assert_allclose(together[0], mean / np.linalg.norm(mean), atol=1e-5)


def test_layers_are_counted_as_others_do():
    for output, until in ((-1, None), (4, None), (-2, 3), (0, 0), (-5, 0), (3, 3)):
        assert options("htp", output_layer=output).until(4) == until


def test_misuse_is_told(params):
    for change, message in (
        ({"plan": "htpp"}, "plan='htpp' is not one of vanilla, echo"),
        ({"pooling": "cls"}, "pooling='cls' is not one of mean, last"),
        ({"last_block_end": "end"}, "last_block_end='end' is not one of text, suffix"),
        ({"start": -1}, "TokenPrepending: start=-1 must be at least 0$"),
        ({"max_blocks": 0}, "TokenPrepending: max_blocks=0 must be at least 1$"),
    ):
        with pytest.raises(ValueError, match=message):
            TokenPrepending(**change)
    with pytest.raises(ValueError, match=r"exit=7 is more than the 4 layers of the model; ask for exit <= 4"):
        embed(params, TokenPrepending(), batch(TokenPrepending(), [row("htp")], width=32))
    assert TokenPrepending("vanilla").until(4) == 3  # which writes no placeholder
    for layer in (5, -6):
        with pytest.raises(ValueError, match=rf"output_layer={layer} is none of a model of 4 layers; ask for -5 to 4"):
            options("htp", output_layer=layer).until(4)
    for arguments, message in (
        ({"pieces": ([], [], [])}, r"plan=htp has the text 1 times in a row, and the prompt 2; write \{text\} that often"),
        ({"ends": [3, 13]}, r"blocks end after \[3, 13\] tokens, and the text has 12"),
        ({"ends": [3, 3, 12]}, "ends must rise from above 0 to that"),
        ({"length": 4}, "the prompt's 3 tokens and the placeholders of a block leave no room for a text in length=4; shorten the prompt, or raise length"),
        ({"length": 2, "text": [], "ends": []}, "the prompt's 3 tokens leave no room"),
    ):
        with pytest.raises(ValueError, match=message):
            row("htp", **arguments)
    with pytest.raises(ValueError, match=r"1 rows of up to 23 tokens do not fit into 1 of 22; make the batch larger"):
        batch(options("htp"), [row("htp")], width=22)
    assert dataclasses.replace(TokenPrepending(), plan="tp").slots == 1 and token_prepending.PLACEHOLDER < 0
