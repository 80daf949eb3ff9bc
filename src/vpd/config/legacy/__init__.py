"""The older vocabularies of run files, and how each of their fields becomes one of today's."""
