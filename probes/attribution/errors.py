"""What the user can mend when an attribution cannot be made."""

from __future__ import annotations

from probes.errors import ObjectiveError


class AttributionError(ObjectiveError):
    """A method cannot run on this model or example; the message says why and what to choose instead."""
