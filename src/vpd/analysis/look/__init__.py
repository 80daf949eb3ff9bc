"""What was harvested, as a person looks at it: in a terminal, as pages, as trials."""
