"""Two-stage search: single vectors find candidates, many vectors rank them."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from jaxrec.index.exact import NOTHING
from jaxrec.index.index import Index
from jaxrec.index.multivector.multivector import MultiVectorIndex, Vectors


def two_stage(
    first: Index,
    second: MultiVectorIndex,
    vectors: ArrayLike,
    queries: Vectors,
    k: int,
    *,
    depth: int = 100,
    mask: ArrayLike | None = None,
    filter: ArrayLike | None = None,  # noqa: A002
) -> tuple[np.ndarray, np.ndarray]:
    """The k documents of the largest MaxSim among the `depth` of the largest inner product.

    Args:
      first: single vectors by id.
      second: many vectors by the same ids.
      vectors: [B, E] for `first`.
      queries: for `second`, of the same B queries, with `mask`.
      k: 1 to depth.
      depth: candidates, all that `first` holds if that is less.
      mask: see `MultiVectorIndex.search`.
      filter: see `MultiVectorIndex.search`.

    Returns:
      ids [B, k] int64 and scores [B, k] float32, as `MultiVectorIndex.search` has them.

    Raises:
      ValueError: k is more than the candidates, or the first stage finds a document that the second does not hold.
    """
    depth = min(depth, len(first))
    if not 1 <= k <= depth:
        raise ValueError(f"k={k} is not 1 to the {depth} candidates of the first stage; raise depth, or ask for fewer")
    ids, _ = first.search(vectors, depth, filter=filter)  # [B, depth]
    if len(lost := np.setdiff1d(ids[ids != NOTHING], second.ids)):
        raise ValueError(f"the first stage found id {lost[0]}, which the second does not hold; add the same documents to both")
    scores = second.score(queries, ids, mask=mask)
    order = np.lexsort((np.where(ids == NOTHING, np.iinfo(np.int64).max, ids), -scores), axis=1)[:, :k]
    return np.take_along_axis(ids, order, axis=1), np.take_along_axis(scores, order, axis=1)
