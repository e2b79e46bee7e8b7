"""Encoders: one vector for a text."""
