"""Dense retrieval on language models: one vector for a text, from the states of a decoder."""
