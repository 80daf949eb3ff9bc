"""Reading a decomposition."""
