"""What can go wrong in a way that the user can mend.

Every message names what is wrong, the value found and what to do, in one or two sentences that are fit for the
browser. Mistakes of our own are `ValueError`s.
"""


class ProbeError(Exception):
    """Base of all errors whose message is meant for the user."""


class RefusedCheckpoint(ProbeError):
    """A file is no checkpoint that can be read safely; the only error that its readers raise.

    verdict: always "refused". message: the sentence, also `str()` of it.
    """

    verdict = "refused"

    @property
    def message(self) -> str:
        """Return the sentence."""
        return str(self)


class ModelError(ProbeError):
    """The architecture is unknown, unreadable, or does not fit the tensors."""


class DataError(ProbeError):
    """The examples cannot be read, or do not fit the model or the loss."""


class ObjectiveError(ProbeError):
    """Model, loss and data together give no usable number (not finite, wrong shapes, out of memory)."""


class CurvatureError(ProbeError):
    """Second derivatives are missing, wrong, or not finite."""
