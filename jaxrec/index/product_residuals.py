"""Centroid and product code: what a centroid leaves of a token, several entries to a byte."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

from jaxrec.index.compress import assign, check_whole_bytes, fit_centroids, fit_product, product_codes, product_tables, product_vectors, unit

CODES = 256  # of a byte
SAMPLE = 2**16  # tokens that the directions and the codebooks are fitted to, at most


@dataclass(frozen=True)
class ProductResidualCodec:
    """A token as its nearest centroid and a product code of the residual (Jegou et al. 2011): v is about C[code] + R' books[bytes].

    The residual is turned by R, so that every byte codes 8 / b of its principal directions whose variances have about the same product as those of any other
    byte (parametric OPQ, Ge et al. 2013). As many bytes as `ResidualCodec` of b bits, and a smaller error: buckets for each entry alone spend as much on
    directions in which nothing varies as on others.

    Attributes:
      centroids: [K, D] of norm 1.
      rotation: R, [D, D] orthogonal.
      books: [M, 256, D / M], M = D b / 8 bytes.
    """

    centroids: np.ndarray
    rotation: np.ndarray
    books: np.ndarray

    @classmethod
    def fit(cls, vectors: np.ndarray, bits: int = 2, *, centroids: int = 0, seed: int = 0) -> ProductResidualCodec:
        """Fits the codec to tokens [T, D], which may be few, alike, or one; see `ResidualCodec.fit`."""
        dim = vectors.shape[1]
        check_whole_bytes(dim, bits)
        book, _ = fit_centroids(vectors, centroids, seed=seed)
        sample = vectors[np.random.default_rng(seed).permutation(len(vectors))[:SAMPLE]]
        residuals = sample - book[assign(sample, book)]
        rotation = balanced(residuals, dim * bits // 8)
        books = fit_product(residuals @ rotation.T, dim * bits // 8, CODES, seed=seed)
        spare = ((0, 0), (0, CODES - books.shape[1]), (0, 0))  # fewer tokens than codes: the last one again, which is never nearer than itself
        return cls(book, rotation, np.pad(books, spare, mode="edge"))

    def encode(self, vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(codes [T], bytes [T, M] uint8) of tokens [T, D]."""
        codes = assign(vectors, self.centroids)
        return codes, product_codes(self.turned(vectors - self.centroids[codes]), self.books)

    def decode(self, codes: np.ndarray, packed: np.ndarray, *, normalize: bool = True) -> np.ndarray:
        """[T, D] float32; of norm 1, or as they come."""
        vectors = self.centroids.take(codes, axis=0) + product_vectors(packed, self.books) @ self.rotation
        return unit(vectors) if normalize else vectors

    @property
    def weights(self) -> np.ndarray:
        """The books, as `kernels.maxsim_compressed.ResidualTokens` names them."""
        return self.books

    @functools.cached_property
    def turned_centroids(self) -> np.ndarray:
        """[K, D] the centroids in the basis in which residuals are coded."""
        return self.turned(self.centroids)

    def products(self, queries: np.ndarray) -> np.ndarray:
        """[m, M, 256] inner products of query tokens [m, D] with what each byte of a residual stands for."""
        return product_tables(self.turned(queries), self.books)

    def turned(self, vectors: np.ndarray) -> np.ndarray:
        """Vectors [m, D] in the basis in which residuals are coded."""
        return vectors @ self.rotation.T


def balanced(vectors: np.ndarray, parts: int) -> np.ndarray:
    """[D, D] orthogonal: principal directions of [T, D] in an order that gives each of `parts` groups of D / parts rows about the same product of variances.

    The direction of the largest variance that is left goes to the group with the least product so far that is not full (Ge et al. 2013, OPQ_P).
    """
    variances, directions = np.linalg.eigh(vectors.T.astype(np.float64) @ vectors)
    logs = np.log(np.maximum(variances, np.finfo(np.float64).tiny))
    logs -= logs.min()  # no factor below 1, so that a group never becomes less by taking one
    each = len(variances) // parts
    groups: list[list[int]] = [[] for _ in range(parts)]
    for direction in np.argsort(-variances, kind="stable"):
        group = min((group for group in groups if len(group) < each), key=lambda group: logs[group].sum())
        group.append(int(direction))
    return directions[:, [direction for group in groups for direction in group]].T.astype(np.float32)
