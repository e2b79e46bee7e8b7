"""Indexes of documents of many vectors, searched by MaxSim."""

from jaxrec.index.multivector.exact import ExactMultiVector
from jaxrec.index.multivector.multivector import MultiVectorIndex
from jaxrec.index.multivector.muvera import FixedDimensionalEncoding, Muvera
from jaxrec.index.multivector.plaid import Plaid
from jaxrec.index.multivector.two_stage import two_stage
from jaxrec.index.multivector.warp import Warp

__all__ = ["MultiVectorIndex", "ExactMultiVector", "Muvera", "FixedDimensionalEncoding", "Plaid", "Warp", "two_stage"]
