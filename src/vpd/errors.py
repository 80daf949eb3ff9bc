"""Errors that a user can act on."""


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
    """Training met a loss that is NaN or infinite; the message names the step and the term. Exit code 1."""


class FamilyError(Exception):
    """Some of several runs failed and the others are finished; the message names them. Exit code 1."""
