"""Judging a decomposition: metrics, figures, the report."""
