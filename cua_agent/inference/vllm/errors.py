"""What can go wrong with a vLLM server."""

from __future__ import annotations

from cua_agent.inference.base import InferenceFailure


class ServerFailure(InferenceFailure):
    """A server did not answer, or answered what cannot be used; the message names it."""


class Unavailable(ServerFailure):
    """No answer, or none at this time: the same call may succeed later. `retry_after_s` is the server's own wish."""

    def __init__(self, message: str, retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Refused(ServerFailure):
    """The server will give the same answer again; `status` is the HTTP status."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class Forgotten(ServerFailure):
    """The server does not know the weights that were published to it: it was restarted."""


class ImagesForgotten(Forgotten):
    """The server dropped images that it was sent before."""


class TokenDrift(ServerFailure):
    """The server saw, or reports, other tokens than ours: the episode must not be trained on."""


class ServerMismatch(ValueError):  # noqa: N818 (a state of the world, not a fault of the program)
    """A server that cannot serve this run; one line naming what is wrong and the flag that cures it."""


class CanaryError(RuntimeError):
    """A server's log-probabilities do not follow the trainer's weights: training on its samples would be wrong."""
