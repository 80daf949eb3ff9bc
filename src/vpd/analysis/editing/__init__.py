"""Interventions on subcomponents: what they change on target and off it, and the network with them made for good."""
