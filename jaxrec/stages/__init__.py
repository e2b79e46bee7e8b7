"""Artifacts and steps that compute with JAX: trained parts, evaluations of runs."""
