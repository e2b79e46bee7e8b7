"""Product codes of residuals: the basis, the round trip, and an error below that of numbers of as many bits."""

from __future__ import annotations

import numpy as np
import pytest

from jaxrec.index.compress import ResidualCodec, unit
from jaxrec.index.product_residuals import ProductResidualCodec, balanced

D = 16


@pytest.fixture(scope="module")
def tokens():
    """[6000, 16] of norm 1 around 60 centres, far along some directions that are no axes, and hardly along others."""
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.normal(size=(D, D)))[0] * 0.3 * np.exp(-np.arange(D) / 4)
    centres = unit(rng.normal(size=(60, D)))
    return unit(centres[rng.integers(60, size=6000)] + rng.normal(size=(6000, D)) @ basis.T).astype(np.float32)


def error(codec, vectors, normalize=True):
    return float(np.square(vectors - codec.decode(*codec.encode(vectors), normalize=normalize)).sum(axis=1).mean())


def test_the_basis_is_orthogonal_and_shares_out_the_variances():
    rng = np.random.default_rng(1)
    variances = np.exp(-np.arange(D) / 2.0)
    vectors = (rng.normal(size=(20_000, D)) * np.sqrt(variances)) @ np.linalg.qr(rng.normal(size=(D, D)))[0]
    rotation = balanced(vectors, 4)
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(D), atol=1e-5)
    turned = np.cov((vectors @ rotation.T).T)
    np.testing.assert_allclose(turned, np.diag(np.diag(turned)), atol=1e-4)  # principal directions: nothing varies together
    logs = np.log(np.diag(turned)).reshape(4, 4)
    assert np.ptp(logs.sum(axis=1)) < 1, "the groups' products"
    assert np.ptp(np.log(np.sort(np.diag(turned))).reshape(4, 4).sum(axis=1)) > 20, "which sorting alone leaves far apart"


@pytest.mark.parametrize("bits", [1, 2])
def test_the_error_is_below_that_of_numbers_of_as_many_bits(tokens, bits):
    product, scalar = (kind.fit(tokens, bits, centroids=64) for kind in (ProductResidualCodec, ResidualCodec))
    np.testing.assert_array_equal(product.centroids, scalar.centroids)
    one, other = product.encode(tokens), scalar.encode(tokens)
    assert (one[1].dtype, one[1].shape) == (other[1].dtype, other[1].shape) == (np.uint8, (6000, D * bits // 8))
    for normalize in (True, False):
        assert error(product, tokens, normalize) < 0.7 * error(scalar, tokens, normalize)


def test_a_byte_is_the_nearest_of_its_book_and_products_are_those_of_decoded_residuals(tokens):
    codec, query = ProductResidualCodec.fit(tokens, 2, centroids=16), tokens[:5]
    codes, packed = codec.encode(tokens[:50])
    parts = ((tokens[:50] - codec.centroids[codes]) @ codec.rotation.T).reshape(50, -1, 4)
    distance = np.square(parts[:, :, None] - codec.books).sum(axis=-1)  # [50, M, 256]
    np.testing.assert_allclose(np.take_along_axis(distance, packed[..., None].astype(int), axis=2)[..., 0], distance.min(axis=2), rtol=1e-4, atol=1e-7)
    tables = codec.products(query)  # [5, M, 256]
    by_table = tables[:, np.arange(packed.shape[1]), packed].sum(axis=-1)
    expected = query @ (codec.decode(codes, packed, normalize=False) - codec.centroids[codes]).T
    np.testing.assert_allclose(by_table, expected, atol=1e-5)


def test_few_and_equal_tokens(tokens):
    for vectors in (tokens[:1], tokens[:3], np.repeat(tokens[:1], 100, axis=0), np.repeat(tokens[:2], 30, axis=0), tokens[:200]):
        codec = ProductResidualCodec.fit(vectors, 2)
        assert codec.books.shape == (4, 256, 4)
        np.testing.assert_allclose(codec.decode(*codec.encode(vectors)), vectors, atol=1e-4)


def test_bits_that_fill_no_bytes(tokens):
    for bits, dim in ((3, 16), (1, 12), (0, 16)):
        with pytest.raises(ValueError, match=f"{dim} numbers of {bits} bits fill no whole bytes"):
            ProductResidualCodec.fit(tokens[:, :dim], bits)
