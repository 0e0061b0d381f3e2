"""The errors a user can cause. Each message is one line: what was given, where, and what would be right.

The command line prints the message of an `ICLMError` on stderr and exits with code 2; any other exception is a
fault of ours and exits with code 1.
"""


class ICLMError(Exception):
    """Base class of every error caused by what was given to ICLM."""


class ConfigurationError(ICLMError, ValueError):
    """A recipe, a command-line option or an argument that cannot be used."""


class DataError(ICLMError, ValueError):
    """A data file, a line of it or a problem that cannot be used; the message names file and line."""


class BackboneError(ICLMError, ValueError):
    """A base model that cannot be found, loaded or adapted."""


class CheckpointError(ICLMError, ValueError):
    """A run folder that is missing, damaged, or made from another base model."""


def first_line(error: BaseException) -> str:
    """What an exception of another library says, in a line: the first of its message, or its kind."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
