"""Compressed: what engines over centroids and residual codes share, the codec's fit, its drift and how to fit it again."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping

import jax
import numpy as np
from jax import Array
from numpy.typing import ArrayLike

from jaxrec.index.compress import ResidualCodec
from jaxrec.index.multivector.multivector import MultiVectorIndex, Vectors
from jaxrec.index.multivector.packed import VECTORS, Packed, maxsim, maxsim_of_codes
from jaxrec.index.product_residuals import ProductResidualCodec
from kernels.maxsim_compressed import maxsim_residual

SAMPLE = 4096  # tokens of an `add` whose error is measured
CODES, RESIDUALS = "codes", "residuals"
WHOLE = 32  # bits of a vector's entry as it is
Codec = ResidualCodec | ProductResidualCodec
CODECS: dict[str, type[Codec]] = {"scalar": ResidualCodec, "product": ProductResidualCodec}


class Compressed(MultiVectorIndex):
    """An index whose first documents fit a codec that encodes all later ones too: `residuals` is "scalar" or "product", by the codecs' names."""

    _codec: Codec | None = None
    _errors: np.ndarray | None = None  # squared error a token of what the codec was fitted to, that of what came later, and how many tokens came

    @property
    def drift(self) -> float:
        """Squared error of a token added since the codec was fitted, divided by that of those it was fitted to; 1 with none. Above 1.5, `rebuild`."""
        if self._errors is None or not self._errors[2]:
            return 1.0
        fitted, later, _ = self._errors
        return float(later / fitted) if fitted else float("inf") if later else 1.0

    def rebuild(self, vectors: Vectors, lengths: ArrayLike | None = None) -> None:
        """Fits the codec anew, to the vectors of all documents, in the order of `ids`, and encodes them all. Codes alone would add error to error."""
        fresh = type(self)(fingerprint=self.fingerprint, **self._options)
        fresh.add(self._ids, vectors, lengths)
        vars(self).update(vars(fresh))

    @property
    def codec(self) -> Codec:
        """Fitted by the first documents with tokens; raises ValueError before."""
        if self._codec is None:
            raise ValueError("no document with tokens was added, so there is no codec")
        return self._codec

    def _learn(self, vectors: np.ndarray) -> None:
        options = self._options
        self._codec = self._kind.fit(vectors, options["bits"], centroids=options["centroids"], seed=options["seed"])

    @property
    def _kind(self) -> type[Codec]:
        return CODECS[self._options["residuals"]]

    def _decode(self, columns: Mapping[str, np.ndarray]) -> np.ndarray:
        """[T, D] the vectors that the columns of `_encode` stand for."""
        raise TypeError(f"{type(self).__name__} does not decode")

    def _maxsim(self, queries: Packed, documents: Packed, *, normalize: bool) -> np.ndarray:
        """[B, C] MaxSim with documents of codes and residuals."""

        def decoding(some: Packed) -> np.ndarray:
            return maxsim(queries, self._decode(some.columns), some.offsets)

        book = self.codec.turned_centroids, self.codec.weights
        turned = Packed(queries.offsets, {VECTORS: self.codec.turned(queries.vectors)})
        compiled = functools.partial(_residual_scores, *book, normalize=normalize)
        return maxsim_of_codes(turned, documents, decoding, compiled)

    def _insert(self, documents: Packed, ids: np.ndarray, order: np.ndarray) -> None:
        self._measure(documents.vectors)
        super()._insert(documents, ids, order)

    def _measure(self, vectors: np.ndarray) -> None:
        """Notes the error of tokens [T, D] to be added."""
        if not len(vectors):
            return
        sample = vectors[:: -(-len(vectors) // SAMPLE)]
        error = float(np.square(self._decode(self._encode(sample)) - sample).sum(axis=1).mean())
        if self._errors is None:
            self._errors = np.array([error, 0, 0])
        else:
            fitted, later, tokens = self._errors
            self._errors = np.array([fitted, (later * tokens + error * len(vectors)) / (tokens + len(vectors)), tokens + len(vectors)])

    def _arrays(self) -> dict[str, np.ndarray]:
        if self._codec is None or self._errors is None:
            return super()._arrays()
        return super()._arrays() | {name: getattr(self._codec, name) for name in _fields(self._kind)} | {"errors": self._errors}

    def _restore(self, arrays: dict[str, np.ndarray]) -> None:
        if self._learned:
            self._errors = arrays.pop("errors")
            self._codec = self._kind(*(arrays.pop(name) for name in _fields(self._kind)))
        super()._restore(arrays)


def _fields(kind: type[Codec]) -> list[str]:
    return [field.name for field in dataclasses.fields(kind)]


def check_codec(bits: int, residuals: str, widths: tuple[int, ...] = (1, 2, 4)) -> None:
    """Raises ValueError for options that are no codec's."""
    if bits not in widths:
        whole = ", or 32 for vectors as they are" if WHOLE in widths else ""
        raise ValueError(f"bits={bits}: an entry of a residual has 1, 2 or 4 bits{whole}")
    if residuals not in CODECS:
        raise ValueError(f"residuals={residuals!r} is none of {', '.join(CODECS)}")
    if bits == WHOLE and residuals != "scalar":
        raise ValueError(f"bits=32 keeps vectors as they are, so there are no residuals for residuals={residuals!r}; use 1, 2 or 4 bits")


@functools.partial(jax.jit, static_argnames="normalize")
def _residual_scores(centroids: Array, weights: Array, queries: Array, columns: Mapping[str, Array], offsets: Array, mask: Array, *, normalize: bool) -> Array:
    return maxsim_residual(queries, centroids, columns[CODES], columns[RESIDUALS], weights, offsets, mask, normalize=normalize)
