"""Every error that weft raises on purpose, in one tree.

The exit code belongs to the class: the command line prints the message on one
line and leaves with it (1 a check failed, 2 a mistake of the user, 3 an
environment that cannot do what was asked).
"""

from __future__ import annotations


class WeftError(Exception):
    """Root of the tree. Never raised itself."""

    exit_code = 1


class CheckFailed(WeftError):
    """A comparison that the command was asked to make did not hold."""

    exit_code = 1


class UserError(WeftError):
    """The user asked for something that cannot be: names the value, the limit and the fix."""

    exit_code = 2


class ModelConfigError(UserError):
    """A model name, ``config.json`` or checkpoint that weft cannot read or does not support."""


class LayoutError(UserError):
    """A layout that contradicts itself, the model or the number of processes."""


class WorkloadError(UserError):
    """A request or workload that cannot run (lengths, batch, sampling parameters)."""


class FileFormatError(UserError):
    """An input file that is missing, damaged or of another kind."""


class StepError(WeftError):
    """A step of the engine failed. Its requests have ended with this error; others can follow."""


class EnvironmentUnavailable(WeftError):
    """This machine cannot do it: no GPU, a missing package, a port in use."""

    exit_code = 3


class CommunicationError(EnvironmentUnavailable):
    """An operation between ranks failed or ran past its bound.

    follows: another rank's failure is the cause, which that rank or its launcher reports.
    """

    follows = True
    names_rank = False


class LostRankError(CommunicationError):
    """One or more ranks of the run died or stopped answering; the message names them."""

    names_rank = True


class FrozenRankError(LostRankError):
    """A rank is there and does not answer."""

    follows = False


class ReplicaLeftError(CommunicationError):
    """A replica that shares experts with this one was told to stop."""


class LoneFailureError(CommunicationError):
    """This rank failed where the others of its group did not, which now wait for it."""

    follows = False
    names_rank = True
