"""Parts with parameters: flax.struct pytrees of arrays with a pure `__call__`, and a `spec` that declares them."""
