"""Batches, each a function of (seed, step)."""
