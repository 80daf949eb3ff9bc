"""Errors that a user can act on."""

from collections.abc import Mapping


class VpdError(Exception):
    """A user's mistake: the message is one sentence with the rule, the offending value and the way out.

    The command line prints the message alone and exits with code 2.
    """


class ConfigError(VpdError):
    """A run file, or a value in it, that can't be used."""


class RunError(VpdError):
    """A run directory that can't be opened, resumed or written."""


class TraceError(VpdError):
    """A function that can't be decomposed as asked; the message names parameter, operation and source line."""


class Stopped(Exception):
    """A signal asked for a stop while there was nothing to save; starting again is safe. Exit code 75."""


class NonFiniteError(Exception):
    """Training met a loss, gradient or parameter that is NaN or infinite. Exit code 1.

    Attributes:
        found: what is not finite, with step and term.
        step: the step that found or made it, from ``step`` to ``step + 1``; None where nobody can make it again.
        logs: scalars of that step.
        advice: what to do about it.
    """

    def __init__(
        self,
        found: str,
        step: int | None = None,
        logs: Mapping[str, float] | None = None,
        advice: str = "lower the learning rates or clip the gradient, and start again from the last checkpoint",
    ) -> None:
        """One sentence of what was found and what to do."""
        super().__init__(f"{found}; {advice}")
        self.found, self.step, self.logs, self.advice = found, step, dict(logs or {}), advice


class FamilyError(Exception):
    """Some of several runs failed and the others are finished; the message names them. Exit code 1."""


class PeerError(Exception):
    """Another process of the run is gone; the checkpoints are as they were. Exit code 1."""
