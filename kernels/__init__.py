"""Kernels: operations worth more than one implementation. They import jax only and know nothing of jaxrec.

Each is a folder: `__init__.py` (the public function and its derivative), `reference.py` (the definition, plain jnp) and one file per backend.
"""
