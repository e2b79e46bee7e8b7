"""Peers, written by us from the equations, each run by an interpreter of its own."""
