"""One call to the service: its deadline, when it may be made again, and what its failure means.

The SDK sends no idempotency key, so a call that acts is made again only when it certainly did nothing. The SDK's own
retries are off: all of them are decided here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from time import time
from typing import TypeVar

import httpx
from gbox_sdk import (
    APIConnectionError,
    APIError,
    APIStatusError,
    AuthenticationError,
    BadRequestError,
    PermissionDeniedError,
    RateLimitError,
    UnprocessableEntityError,
)
from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception,
    stop_after_attempt,
    stop_before_delay,
    wait_random_exponential,
)

from cua_agent.envs.base import EnvironmentFailure, WorldUnavailable
from cua_agent.secrets import mask_text

T = TypeVar("T")

_BACK_OFF = wait_random_exponential(multiplier=0.5, max=10)
_NOT_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)


class CallRefused(Exception):  # noqa: N818 (an answer, not a fault)
    """The service understood the call and refused it (400, 422): nothing was done. The message is the service's."""


class UnusableReply(Exception):  # noqa: N818 (an event of the world)
    """An answer that does not hold what it should: a truncated picture, a missing field."""


def did_nothing(error: BaseException) -> bool:
    """Whether the call certainly had no effect: turned away by a limit (429), or there was no connection to send it."""
    return isinstance(error, RateLimitError) or (
        isinstance(error, APIConnectionError) and isinstance(error.__cause__, _NOT_SENT)
    )


def may_pass(error: BaseException) -> bool:
    """Whether the same call may succeed the next time; for calls that do no harm when they are made twice."""
    if isinstance(error, APIStatusError):
        return error.status_code in (408, 429) or error.status_code >= 500
    return isinstance(error, APIConnectionError | TimeoutError | UnusableReply)


@dataclass(frozen=True)
class Patience:
    """`deadline_s` bounds one attempt; a further one is made up to `attempts`, if it can begin within `patience_s`."""

    deadline_s: float
    attempts: int = 5
    patience_s: float = 60.0


async def call(
    what: str, make: Callable[[], Awaitable[T]], patience: Patience, again: Callable[[BaseException], bool]
) -> T:
    """The result of `make()`, made again after an error for which `again` says so.

    Waits as long as the service asks for (Retry-After), and at least with exponential back-off. Raises
    `EnvironmentFailure`, `CallRefused`, or `WorldUnavailable` when the key is not accepted.
    """

    async def attempt() -> T:
        async with asyncio.timeout(patience.deadline_s):
            return await make()

    retrying = AsyncRetrying(
        retry=retry_if_exception(again),
        wait=_pause,
        stop=stop_after_attempt(patience.attempts) | stop_before_delay(patience.patience_s),
        reraise=True,
    )
    try:
        return await retrying(attempt)
    except (APIError, TimeoutError, UnusableReply) as error:
        raise _meaning_of(error, what, patience) from error


def _pause(state: RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    return max(_BACK_OFF(state), retry_after_s(error))


def retry_after_s(error: BaseException | None) -> float:
    """Seconds that the service asks to wait, given as a number or a date; 0 when it does not."""
    if not isinstance(error, APIStatusError):
        return 0.0
    value = error.response.headers.get("retry-after", "")
    try:
        return float(value)
    except ValueError:
        pass
    try:
        return parsedate_to_datetime(value).timestamp() - time()
    except ValueError:
        return 0.0


def _meaning_of(error: Exception, what: str, patience: Patience) -> Exception:
    reason = reason_of(error) or f"no answer within {patience.deadline_s:g} s"
    if isinstance(error, AuthenticationError | PermissionDeniedError):
        return WorldUnavailable(f"the GBox service refuses the key: {reason}")
    if isinstance(error, BadRequestError | UnprocessableEntityError):
        return CallRefused(reason)
    return EnvironmentFailure(f"{what}: {reason}")


def reason_of(error: Exception) -> str:
    """The service's own words, or what the connection did; one line, empty for a deadline of ours."""
    if isinstance(error, APIStatusError):
        body = error.body
        message = body.get("message") if isinstance(body, dict) else None
        return " ".join(mask_text(f"{error.status_code} {message or error.response.reason_phrase}").split())[:200]
    if isinstance(error, APIConnectionError):
        cause = error.__cause__
        return f"{error.message} ({type(cause).__name__})" if cause else error.message
    return str(error)
