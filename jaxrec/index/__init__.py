"""Indexes: vectors by id, searched by inner product."""

from jaxrec.index.bm25 import BM25Index
from jaxrec.index.exact import ExactIndex
from jaxrec.index.index import Index
from jaxrec.index.scann import ScannIndex

__all__ = ["Index", "BM25Index", "ExactIndex", "ScannIndex"]
