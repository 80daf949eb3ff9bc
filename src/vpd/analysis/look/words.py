"""Tokens as they are shown."""


def visible(text: str) -> str:
    """A token on one line, its spaces to be seen."""
    return text.replace("\n", "⏎").replace("\t", "⇥").replace(" ", "␣") or "∅"
