"""Adversarial parameter decomposition in JAX."""
