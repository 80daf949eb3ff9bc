"""Attention through subcomponents: which pairs make the scores, which heads they span, what heads share."""
