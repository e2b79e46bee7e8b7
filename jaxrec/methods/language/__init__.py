"""Language models: text a token at a time."""
