"""Centroid and product code: what a centroid leaves of a token, several entries to a byte."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from jaxrec.index.compress import assign, fit_centroids, fit_product, product_codes, product_tables, product_vectors, unit

CODES = 256  # of a byte
SAMPLE = 2**16  # tokens that the basis and the codebooks are fitted to, at most
LEAST = 1e-4  # of the largest eigenvalue of what queries ask: no direction counts for less


@dataclass(frozen=True)
class ProductResidualCodec:
    """A token as its nearest centroid and a product code of the residual (Jegou et al. 2011): v is about C[code] + B^-1 books[bytes].

    B turns residuals to principal directions, of which every byte codes 8 / b whose variances have about the same product as those of any other byte
    (parametric OPQ, Ge et al. 2013). Buckets for each entry alone, as in `ResidualCodec`, spend as much on directions in which nothing varies as on others.

    What matters is the error of inner products with queries, E (q . e)^2 = e' S e with S their second moment, and not that of vectors. If S is known, B first
    maps residuals by its square root, so that the squared error there is that of inner products.

    Attributes:
      centroids: [K, D] of norm 1.
      basis: B, [D, D]; orthogonal if S was not known.
      inverse: of the basis.
      books: [M, 256, D / M], M = D b / 8 bytes.
    """

    centroids: np.ndarray
    basis: np.ndarray
    inverse: np.ndarray
    books: np.ndarray

    normalizes: ClassVar[bool] = False  # the basis may change norms, and dividing by that of a decoded vector would bend what queries ask

    @classmethod
    def fit(cls, vectors: np.ndarray, bits: int = 2, *, centroids: int = 0, seed: int = 0, moment: np.ndarray | None = None) -> ProductResidualCodec:
        """Fits the codec to tokens [T, D], which may be few, alike, or one.

        Args:
          vectors, bits, centroids, seed: see `ResidualCodec.fit`.
          moment: S [D, D], the mean of q q' over tokens of queries like those to come; None: they are not known.
        """
        dim = vectors.shape[1]
        if bits not in (1, 2, 4) or dim % (8 // bits):
            raise ValueError(f"{dim} numbers of {bits} bits fill no whole bytes; use 1, 2 or 4 bits and a multiple of {8 // max(bits, 1)} dimensions")
        book, _ = fit_centroids(vectors, centroids, seed=seed)
        sample = vectors[np.random.default_rng(seed).permutation(len(vectors))[:SAMPLE]]
        residuals = sample - book[assign(sample, book)]
        root, back = roots(np.eye(dim) if moment is None else moment)
        rotation = balanced(residuals @ root, dim * bits // 8)
        basis, inverse = ((rotation @ root).astype(np.float32), (back @ rotation.T).astype(np.float32))
        books = fit_product(residuals @ basis.T, dim * bits // 8, CODES, seed=seed)
        spare = ((0, 0), (0, CODES - books.shape[1]), (0, 0))  # fewer tokens than codes: the last one again, which is never nearer than itself
        return cls(book, basis, inverse, np.pad(books, spare, mode="edge"))

    def encode(self, vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(codes [T], bytes [T, M] uint8) of tokens [T, D]."""
        codes = assign(vectors, self.centroids)
        return codes, product_codes((vectors - self.centroids[codes]) @ self.basis.T, self.books)

    def decode(self, codes: np.ndarray, packed: np.ndarray, *, normalize: bool = False) -> np.ndarray:
        """[T, D] float32; as they come, or of norm 1."""
        vectors = self.centroids.take(codes, axis=0) + product_vectors(packed, self.books) @ self.inverse.T
        return unit(vectors) if normalize else vectors

    def asked(self, queries: np.ndarray) -> np.ndarray:
        """[m, D] whose inner products with `stored` centroids and with books are those of query tokens [m, D] with what these stand for."""
        return queries @ self.inverse

    def stored(self) -> tuple[np.ndarray, np.ndarray]:
        """(centroids [K, D] in the basis of the books, books): what `kernels.maxsim_compressed` takes."""
        return self.centroids @ self.basis.T, self.books

    def products(self, queries: np.ndarray) -> np.ndarray:
        """[m, M, 256] inner products of query tokens [m, D] with what each byte of a residual stands for."""
        return product_tables(self.asked(queries), self.books)


def roots(moment: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The square root of a symmetric [D, D] of no negative eigenvalues, and its inverse; eigenvalues below LEAST of the largest count as that."""
    values, vectors = np.linalg.eigh(moment.astype(np.float64))
    values = np.sqrt(np.maximum(values, LEAST * values[-1]))
    return (vectors * values) @ vectors.T, (vectors / values) @ vectors.T


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
    return directions[:, [direction for group in groups for direction in group]].T
