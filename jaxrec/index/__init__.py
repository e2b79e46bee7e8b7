"""Indexes: vectors by id, searched by inner product."""

from jaxrec.index.exact import ExactIndex
from jaxrec.index.index import Index
from jaxrec.index.scann import ScannIndex

__all__ = ["Index", "ExactIndex", "ScannIndex"]
