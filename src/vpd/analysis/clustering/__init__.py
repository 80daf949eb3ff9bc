"""Clusters of subcomponents that fire together: components, possibly over several sites (method.md §11)."""
