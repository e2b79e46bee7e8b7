"""Token vectors in fewer bytes, and fewer of them: pure functions, arrays in and arrays out.

| what                                       | bytes a token, D dimensions        | 128 dimensions       |
|--------------------------------------------|------------------------------------|----------------------|
| float32                                    | 4 D                                | 512                  |
| `int8_codes`                               | D + 4                              | 132                  |
| `ResidualCodec`, b bits                    | D b / 8 + 2 (4 above 2^16 centres) | 18, 34, 66           |
| `ProductResidualCodec`, b bits             | the same                           |                      |
| `product_codes`, M parts                   | M                                  | 1 (M = 1), 16        |
| `sign_bits`                                | D / 8                              | 16                   |
| `pool`, factor f; `salient`, share p       | 1 / f, or p, of the tokens         | multiplies the above |

Codebooks come on top, once: 4 D for each centre.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec.ops.quantize import lloyd, nearest, seed_codes

TINY = 1e-12
DISTANCES = 2**24  # of tokens to centres, at a time
SAMPLE = 64  # tokens for each centre that k-means sees
HELD_OUT = 50_000  # tokens that the buckets of residuals are cut by, at most


def unit(vectors: np.ndarray) -> np.ndarray:
    """Vectors [..., D] divided by their norms; a zero vector stays zero."""
    norms = np.sqrt(np.einsum("...d,...d->...", vectors, vectors))
    return vectors / np.maximum(norms, TINY)[..., None]


def assign(vectors: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """[T] index of the nearest of `centroids` [K, D] for each of `vectors` [T, D], of equal ones the first; uint16 where K allows it."""
    dtype = np.uint16 if len(centroids) <= 2**16 else np.uint32
    block = 1 << max(8, (DISTANCES // len(centroids)).bit_length() - 1)
    codes, book = np.empty(len(vectors), dtype), jnp.asarray(centroids)
    for begin in range(0, len(vectors), block):
        some = vectors[begin : begin + block]
        padded = np.zeros((1 << (len(some) - 1).bit_length(), some.shape[1]), np.float32)  # few shapes, so few programs to compile
        padded[: len(some)] = some
        codes[begin : begin + block] = np.asarray(nearest(jnp.asarray(padded), book, block=len(padded)))[: len(some)]
    return codes


# --- Scalars: 8 bits with a scale for each token -----------------------------------------------------------------------------------------


def int8_codes(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(codes [T, D] int8, scales [T] float32): code = round(v / scale), scale = max |v| / 127. No entry is off by more than scale / 2."""
    scales = (np.abs(vectors).max(axis=-1, initial=0) / 127).astype(np.float32)
    return np.rint(vectors / np.maximum(scales, TINY)[:, None]).astype(np.int8), scales


def int8_vectors(codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """[T, D] float32 of what `int8_codes` gave."""
    return codes.astype(np.float32) * scales[:, None]


# --- Centroid and residual (Santhanam et al. 2022, ColBERTv2, arXiv 2112.01488) ----------------------------------------------------------


def check_whole_bytes(dim: int, bits: int) -> None:
    """Raises ValueError unless `dim` numbers of 1, 2 or 4 bits fill whole bytes."""
    each = 8 // bits if bits in (1, 2, 4) else 8
    if bits not in (1, 2, 4) or dim % each:
        raise ValueError(f"{dim} numbers of {bits} bits fill no whole bytes; use 1, 2 or 4 bits and a multiple of {each} dimensions")


def pack(buckets: np.ndarray, bits: int) -> np.ndarray:
    """[T, D bits / 8] uint8 of numbers [T, D] below 2^bits, the first in the highest bits of the first byte."""
    check_whole_bytes(buckets.shape[-1], bits)
    each = 8 // bits
    parts = buckets.astype(np.uint8).reshape(*buckets.shape[:-1], buckets.shape[-1] // each, each)
    return np.bitwise_or.reduce(parts << _shifts(bits), axis=-1)


def unpack(packed: np.ndarray, bits: int) -> np.ndarray:
    """[T, D] uint8 of what `pack` gave."""
    return ((packed[..., None] >> _shifts(bits)) & np.uint8(2**bits - 1)).reshape(*packed.shape[:-1], packed.shape[-1] * (8 // bits))


def _shifts(bits: int) -> np.ndarray:
    return np.arange(8 - bits, -1, -bits, dtype=np.uint8)


def fit_centroids(vectors: np.ndarray, count: int = 0, *, iterations: int = 4, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(centroids [K, D] of norm 1 by k-means of a sample of tokens [T, D], tokens [H, D] that it did not see, if there are enough); see `ResidualCodec.fit`."""
    if count < 0:
        raise ValueError(f"centroids={count} is no number of centroids; use 1 or more, or 0 for as many as suit the tokens")
    wanted = count or 2 ** int(math.log2(16 * math.sqrt(len(vectors))))
    sample = vectors[np.random.default_rng(seed).permutation(len(vectors))[: SAMPLE * wanted]]
    unseen = min(len(sample) // 20, HELD_OUT)
    training, held = sample[unseen:], sample[:unseen] if unseen else sample
    start = jnp.asarray(training[:wanted])
    return unit(np.asarray(lloyd(jnp.asarray(training), start, iterations, block=max(256, DISTANCES // len(start))))), held


@dataclass(frozen=True)
class ResidualCodec:
    """A token as its nearest centroid and a few bits for each entry of what is left: v is about C[code] + weights[bucket].

    Buckets are the same for all dimensions.

    Attributes:
      centroids: [K, D] of norm 1.
      cutoffs: [2^b - 1] ascending.
      weights: [2^b] ascending.
    """

    centroids: np.ndarray
    cutoffs: np.ndarray
    weights: np.ndarray

    @property
    def bits(self) -> int:
        """b."""
        return len(self.weights).bit_length() - 1

    @classmethod
    def fit(cls, vectors: np.ndarray, bits: int = 2, *, centroids: int = 0, iterations: int = 4, refine: int = 50, seed: int = 0) -> ResidualCodec:
        """Fits the codec to tokens [T, D], which may be few, alike, or one.

        Args:
          vectors: [T, D], T >= 1.
          bits: 1, 2 or 4 for each entry.
          centroids: K; 0: 2^floor(log2(16 sqrt(T))), as ColBERTv2 has it. No more than there are tokens.
          iterations: of k-means.
          refine: the buckets of ColBERTv2, which are cut at the quantiles of residuals and stand for their medians, by so many iterations of Lloyd's, to
            means and the middles between them. On clustered vectors of 128 dimensions that leaves 23 % less squared error at 2 bits. 0: as in ColBERTv2.
          seed: decides which tokens are sampled.
        """
        check_whole_bytes(vectors.shape[1], bits)
        book, held = fit_centroids(vectors, centroids, iterations=iterations, seed=seed)
        residuals, steps = np.sort((held - book[assign(held, book)]).ravel()), np.arange(2**bits) / 2**bits
        cutoffs, weights = (np.quantile(residuals, at) for at in (steps[1:], steps + 0.5 / 2**bits))
        total = np.concatenate([[0], np.cumsum(residuals, dtype=np.float64)])
        for _ in range(refine):
            ends = np.concatenate([[0], np.searchsorted(residuals, cutoffs, side="right"), [len(residuals)]])
            weights = np.where(np.diff(ends) > 0, np.diff(total[ends]) / np.maximum(np.diff(ends), 1), weights)
            cutoffs = (weights[1:] + weights[:-1]) / 2
        return cls(book, cutoffs.astype(np.float32), weights.astype(np.float32))

    def encode(self, vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(codes [T], residuals [T, D b / 8] uint8) of tokens [T, D]."""
        codes = assign(vectors, self.centroids)
        packed = np.empty((len(vectors), vectors.shape[1] * self.bits // 8), np.uint8)
        for begin in range(0, len(vectors), 4096):
            some = slice(begin, begin + 4096)
            residual = vectors[some] - self.centroids[codes[some]]
            packed[some] = pack(np.searchsorted(self.cutoffs, residual, side="left"), self.bits)
        return codes, packed

    def table(self) -> np.ndarray:
        """[256, 8 / b] the weights that each byte stands for."""
        return self.weights[unpack(np.arange(256, dtype=np.uint8)[:, None], self.bits)]

    @property
    def turned_centroids(self) -> np.ndarray:
        """[K, D] the centroids in the basis in which residuals are coded: as they are."""
        return self.centroids

    def products(self, queries: np.ndarray) -> np.ndarray:
        """[m, D b / 8, 256] inner products of query tokens [m, D] with what each byte of a residual stands for."""
        table = self.table()
        return queries.reshape(len(queries), -1, table.shape[1]) @ table.T

    def turned(self, vectors: np.ndarray) -> np.ndarray:
        """Vectors [m, D] in the basis in which residuals are coded: the same."""
        return vectors

    def decode(self, codes: np.ndarray, packed: np.ndarray, *, normalize: bool = True) -> np.ndarray:
        """[T, D] float32; of norm 1 as ColBERTv2 and PLAID have it, or as they come, as WARP does."""
        vectors = self.table().take(packed, axis=0).reshape(len(codes), self.centroids.shape[1])
        vectors += self.centroids.take(codes, axis=0)
        return unit(vectors) if normalize else vectors


# --- Product codes (Jegou et al. 2011), and what HPC-ColPali, arXiv 2506.21601, can mean by them ------------------------------------------


def fit_product(vectors: np.ndarray, parts: int, codes: int = 256, *, iterations: int = 10, seed: int = 0) -> np.ndarray:
    """[M, W, D / M] codebooks by k-means of each of M parts of tokens [T, D]; W = `codes`, or T if that is less.

    M = 1 is HPC-ColPali's text, a byte for a whole token; its 32-fold compression of 128 dimensions is M = 16.
    """
    if parts < 1 or codes < 1:
        raise ValueError(f"parts={parts} and codes={codes} must be 1 or more")
    if vectors.shape[1] % parts:
        raise ValueError(f"{vectors.shape[1]} dimensions do not divide into {parts} parts; choose a divisor")
    sample = vectors[np.random.default_rng(seed).permutation(len(vectors))[: 256 * codes]]
    width, key = min(codes, len(sample)), jax.random.key(seed)
    books = []
    for number, part in enumerate(np.split(sample, parts, axis=1)):
        start = seed_codes(jnp.asarray(part), width, jax.random.fold_in(key, number)) if width > 1 else jnp.asarray(part[:1])
        books.append(np.asarray(lloyd(jnp.asarray(part), start, iterations, block=max(256, DISTANCES // width))))
    return np.stack(books)


def product_codes(vectors: np.ndarray, codebooks: np.ndarray) -> np.ndarray:
    """[T, M] code of each part, uint8 for 256 codes or fewer, else uint16: tokens [T, D], codebooks [M, W, D / M]."""
    dtype = np.uint8 if codebooks.shape[1] <= 256 else np.uint16
    return np.stack([assign(part, book) for part, book in zip(np.split(vectors, len(codebooks), axis=1), codebooks, strict=True)], axis=1).astype(dtype)


def product_vectors(codes: np.ndarray, codebooks: np.ndarray) -> np.ndarray:
    """[T, D] of codes [T, M] and codebooks [M, W, D / M]."""
    return np.concatenate([book[code] for book, code in zip(codebooks, codes.T, strict=True)], axis=1)


def product_tables(queries: np.ndarray, codebooks: np.ndarray) -> np.ndarray:
    """[N, M, W] inner products of the parts of query tokens [N, D] with all codes: the asymmetric distance keeps the query as it is."""
    return np.einsum("nmd,mwd->nmw", queries.reshape(len(queries), len(codebooks), -1), codebooks)


def product_maxsim(tables: np.ndarray, codes: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """[C] MaxSim of one query's `tables` [N, M, W] with documents of codes [T, M]; document c owns offsets[c] to offsets[c + 1] - 1, one at least."""
    similarity = np.zeros((len(tables), len(codes)), np.float32)  # [N, T]
    for part in range(tables.shape[1]):
        similarity += np.take(tables[:, part], codes[:, part], axis=1)
    return np.maximum.reduceat(similarity, offsets[:-1], axis=1).sum(axis=0)


def distinct_codes(codes: np.ndarray, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(codes [T'], offsets [C + 1]) with each code [T] of a document once: a maximum does not count, so MaxSim is the same."""
    owner = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    pairs = np.unique(np.stack([owner, codes.astype(np.int64)], axis=1), axis=0)
    return pairs[:, 1].astype(codes.dtype), np.searchsorted(pairs[:, 0], np.arange(len(offsets)))


# --- Bits, compared by how many differ ----------------------------------------------------------------------------------------------------


def sign_bits(vectors: np.ndarray) -> np.ndarray:
    """[T, D / 8] uint8: one bit for each entry of tokens [T, D], whether it is above 0."""
    if vectors.shape[1] % 8:
        raise ValueError(f"{vectors.shape[1]} bits fill no whole bytes; use a multiple of 8 dimensions")
    return np.packbits(vectors > 0, axis=1)


def hamming(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """[N, T] how many bits differ: [N, W] and [T, W] packed bits."""
    distance = np.zeros((len(left), len(right)), np.int32)
    for byte in range(left.shape[1]):
        distance += np.bitwise_count(left[:, None, byte] ^ right[None, :, byte])
    return distance


def hamming_maxsim(query: np.ndarray, tokens: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """[C] sum_i (b - min_j hamming_ij): query bits [N, W], documents' bits [T, W], b = 8 W. See `product_maxsim` for offsets."""
    return np.maximum.reduceat(8 * query.shape[1] - hamming(query, tokens), offsets[:-1], axis=1).sum(axis=0)


def bisecting_codes(centroids: np.ndarray, bits: int) -> np.ndarray:
    """[K] codes of `bits` bits whose Hamming distance means something: halves of halves along principal axes, K <= 2^bits.

    The index of a centroid means nothing bit by bit, so HPC-ColPali's distance of indices is one of chance; here a bit is a side of a cut.
    """
    if len(centroids) > 2**bits:
        raise ValueError(f"{len(centroids)} centroids do not fit {bits} bits; use {(len(centroids) - 1).bit_length()}")
    codes = np.zeros(len(centroids), np.int64)
    axes = np.linalg.svd(centroids - centroids.mean(axis=0), full_matrices=False)[2]  # a level has one axis: its bit is a direction, in all parts alike
    for level in range(bits):
        side, upper = centroids @ axes[level % len(axes)], np.zeros(len(centroids), np.int64)
        for part in np.unique(codes):
            rows = np.flatnonzero(codes == part)
            upper[rows[np.argsort(side[rows], kind="stable")][(len(rows) + 1) // 2 :]] = 1
        codes = 2 * codes + upper
    return codes


# --- Fewer tokens -------------------------------------------------------------------------------------------------------------------------


def pool(vectors: np.ndarray, factor: int, *, protected: int = 1) -> np.ndarray:
    """Clusters of tokens as their means, of norm 1: about 1 / factor as many (Clavie et al. 2024, arXiv 2409.14683).

    Ward's criterion on unit vectors, whose squared distance is 2 - 2 cosine.

    Args:
      vectors: [n, D] of one document, n >= 0.
      factor: tokens for each cluster, on average; 1: nothing changes.
      protected: first tokens that stay as they are, [CLS] for one.

    Returns:
      [protected + ceil((n - protected) / factor), D] or fewer: the protected tokens, then the clusters by their first tokens.
    """
    if not 1 <= factor < math.inf:
        raise ValueError(f"factor={factor} makes more tokens, or none; use 1 or more")
    if protected < 0:
        raise ValueError(f"protected={protected} tokens cannot stay; use 0 or more")
    head, rest = vectors[:protected], unit(vectors[protected:])
    wanted = math.ceil(len(rest) / factor)
    if wanted == len(rest):
        return vectors
    if wanted == 1:
        return np.concatenate([head, unit(rest.mean(axis=0, keepdims=True))])
    from scipy.cluster.hierarchy import fcluster, linkage  # slow to import

    label = fcluster(linkage(rest, "ward"), wanted, "maxclust")
    first, cluster = np.unique(label, return_index=True, return_inverse=True)[1:]
    sums = np.zeros((len(first), vectors.shape[1]), np.float32)
    np.add.at(sums, cluster, rest)
    return np.concatenate([head, unit(sums[np.argsort(first)])])


def salient(weights: np.ndarray, share: float) -> np.ndarray:
    """Ascending positions of the ceil(share n) largest of `weights` [n], equal ones by the lower position: the tokens to keep.

    What is kept of a smaller share is kept of a larger one.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share={share} is no share; use 0 to 1")
    return np.sort(largest(weights, math.ceil(share * len(weights) - 1e-9)))  # .7 * 10 is a little more than 7


def largest(weights: np.ndarray, count: int) -> np.ndarray:
    """Positions of the `count` largest of `weights` [n], largest first, equal ones by the lower position; raises ValueError for NaN, which has no order."""
    if np.isnan(weights).any():
        raise ValueError(f"weights[{int(np.isnan(weights).argmax())}] is NaN, which is no more and no less than others; weigh tokens by numbers")
    return np.argsort(-weights, kind="stable")[:count]


def received_attention(attention: np.ndarray) -> np.ndarray:
    """[n] the attention that a token receives, mean over heads and tokens that attend: attention [H, n, n], its rows sum to 1."""
    return attention.mean(axis=(0, 1))


def centrality(vectors: np.ndarray) -> np.ndarray:
    """[n] inner product with the mean of the tokens [n, D]: a weight where the encoder gives no attention."""
    return vectors @ vectors.mean(axis=0)


def aggregate(vectors: np.ndarray, seeds: np.ndarray) -> np.ndarray:
    """[K, D] instance tokens: unit(seed + mean of the tokens that are nearest to it) (CraterBench-R, arXiv 2604.06245).

    Args:
      vectors: [n, D] of one document.
      seeds: [K] distinct positions, from `largest` of an attention or `farthest`, one at least. Seeds belong to no seed but themselves.

    Raises:
      ValueError: no seeds, or others than these.
    """
    seeds = np.asarray(seeds)
    if seeds.ndim != 1 or not len(seeds) or seeds.dtype.kind not in "iu":
        raise ValueError(f"seeds must be positions of tokens, one at least, got {seeds.dtype} of shape {list(seeds.shape)}; choose them with `farthest`")
    if len(np.unique(seeds)) < len(seeds) or seeds.min() < 0 or seeds.max() >= len(vectors):
        raise ValueError(f"seeds must be distinct positions, 0 to {len(vectors) - 1}, got {seeds.tolist()}")
    tokens = unit(vectors)
    rest = np.delete(tokens, seeds, axis=0)
    nearest_seed = np.argmax(rest @ tokens[seeds].T, axis=1)
    sums = np.zeros((len(seeds), vectors.shape[1]), tokens.dtype)
    np.add.at(sums, nearest_seed, rest)
    return unit(tokens[seeds] + sums / np.maximum(np.bincount(nearest_seed, minlength=len(seeds)), 1)[:, None])


def farthest(vectors: np.ndarray, count: int, *, first: int = 0) -> np.ndarray:
    """[count] positions, each next one the token [n, D] whose largest cosine to those before is the least; the first is given."""
    if not 1 <= count <= len(vectors):
        raise ValueError(f"count={count} seeds of {len(vectors)} tokens; ask for 1 to {len(vectors)}")
    if not 0 <= first < len(vectors):
        raise ValueError(f"first={first} is none of the {len(vectors)} tokens; they are numbered from 0")
    tokens, seeds = unit(vectors), [first]
    closest = tokens @ tokens[first]  # [n]
    for _ in range(count - 1):
        closest[seeds[-1]] = np.inf
        seeds.append(int(np.argmin(closest)))
        closest = np.maximum(closest, tokens @ tokens[seeds[-1]])
    return np.array(seeds)
