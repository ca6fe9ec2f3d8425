"""Why what a model wrote is no call."""

from __future__ import annotations


class CallError(Exception):
    """A call means nothing; the message (under 120 characters) is for the model and repeats none of its words."""
