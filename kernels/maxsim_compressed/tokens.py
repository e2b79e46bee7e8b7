"""Document tokens in fewer bytes than float32 vectors."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array

TINY = 1e-12  # a norm below it counts as this one


@functools.partial(jax.tree_util.register_dataclass, data_fields=("codes", "scales"), meta_fields=())
@dataclass(frozen=True)
class Int8Tokens:
    """Token t is scales[t] * codes[t].

    Attributes:
      codes: [T, D] int8.
      scales: [T] float32.
    """

    codes: Array
    scales: Array

    def __len__(self) -> int:
        return len(self.codes)

    @property
    def dim(self) -> int:
        """D."""
        return self.codes.shape[1]


@functools.partial(jax.tree_util.register_dataclass, data_fields=("centroids", "codes", "residuals", "weights"), meta_fields=("normalize",))
@dataclass(frozen=True)
class ResidualTokens:
    """Token t is centroids[codes[t]] + what its residuals stand for, entry by entry (Santhanam et al. 2022, ColBERTv2, arXiv 2112.01488) or byte by byte.

    Attributes:
      centroids: [K, D] float32.
      codes: [T] integers below K.
      residuals: [T, D b / 8] uint8, b = 1, 2 or 4: D numbers of b bits, the first in the highest bits of the first byte; or a product code.
      weights: [2^b] float32, the same for all entries; or, for a product code, [D b / 8, 256, 8 / b] float32, the 8 / b entries that each byte stands for.
      normalize: the token is divided by its norm, as ColBERTv2 and PLAID have it; False: as it comes, as WARP has it.
    """

    centroids: Array
    codes: Array
    residuals: Array
    weights: Array
    normalize: bool = True

    def __len__(self) -> int:
        return len(self.codes)

    @property
    def dim(self) -> int:
        """D."""
        return self.centroids.shape[1]

    @property
    def bits(self) -> int:
        """b."""
        return 8 // self.weights.shape[2] if self.product else len(self.weights).bit_length() - 1

    @property
    def product(self) -> bool:
        """Whether a byte is one code of all its entries."""
        return self.weights.ndim == 3


Tokens = Array | Int8Tokens | ResidualTokens


def check(queries: Array, tokens: Tokens) -> None:
    """Raises ValueError or TypeError unless queries are [B, N, D] floats and the tokens of that width, of the shapes and types that they promise."""
    if queries.ndim != 3 or not jnp.issubdtype(queries.dtype, jnp.floating):
        raise ValueError(f"queries must be floats [B, N, D], got {queries.dtype} of shape {queries.shape}")
    if isinstance(tokens, Int8Tokens):
        _check_int8(tokens)
    elif isinstance(tokens, ResidualTokens):
        _check_residual(tokens)
    elif tokens.ndim != 2 or tokens.dtype != queries.dtype:
        raise ValueError(f"tokens must be [T, D] of the queries' type {queries.dtype}, got {tokens.dtype} of shape {tokens.shape}; cast one to the other")
    dim = tokens.dim if isinstance(tokens, Int8Tokens | ResidualTokens) else tokens.shape[1]
    if queries.shape[2] != dim:
        raise ValueError(f"queries have {queries.shape[2]} dimensions and tokens {dim}; both must come from one encoder")


def _check_int8(tokens: Int8Tokens) -> None:
    codes, scales = tokens.codes, tokens.scales
    if codes.ndim != 2 or codes.dtype != jnp.int8:
        raise ValueError(f"codes must be int8 [T, D], got {codes.dtype} of shape {codes.shape}")
    if scales.shape != codes.shape[:1] or scales.dtype != jnp.float32:
        raise ValueError(f"scales must be float32 ({len(codes)},), one for each token, got {scales.dtype} of shape {scales.shape}")


def _check_residual(tokens: ResidualTokens) -> None:
    centroids, codes, residuals, weights = tokens.centroids, tokens.codes, tokens.residuals, tokens.weights
    if centroids.ndim != 2 or not len(centroids) or centroids.dtype != jnp.float32:
        raise ValueError(f"centroids must be float32 [K, D], got {centroids.dtype} of shape {centroids.shape}")
    if codes.ndim != 1 or not jnp.issubdtype(codes.dtype, jnp.integer):
        raise ValueError(f"codes must be [T] integers, got {codes.dtype} of shape {codes.shape}")
    books = [(tokens.dim * bits // 8, 256, 8 // bits) for bits in (1, 2, 4)]
    if weights.shape not in ((2,), (4,), (16,), *books) or weights.dtype != jnp.float32:
        raise ValueError(
            f"weights must be float32, one for each number of 1, 2 or 4 bits, or {' or '.join(map(str, books))} for a product code of {tokens.dim} dimensions, "
            f"got {weights.dtype} of shape {weights.shape}"
        )
    each, dim = 8 // tokens.bits, tokens.dim
    if dim % each:
        raise ValueError(f"{dim} numbers of {tokens.bits} bits fill no whole bytes; use a multiple of {each} dimensions")
    if residuals.shape != (len(codes), dim // each) or residuals.dtype != jnp.uint8:
        expected = (len(codes), dim // each)
        raise ValueError(f"residuals must be uint8 {expected} for {dim} dimensions of {tokens.bits} bits, got {residuals.dtype} of shape {residuals.shape}")
