"""Generative retrieval: items as short sequences of codes, and models that write them."""
