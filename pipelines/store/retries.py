"""Retries of what stores do: throttle, stall, break off, answer late, refuse.

s3fs and Lance's object store try again by themselves, a few times, what they know to be harmless. This is the layer
above: whole steps (a picture, a listing, a shard from the record on where it broke, a staged group, a commit) that
can be done again without doubling anything. A refusal (credentials, rights) is never tried again.
"""

from __future__ import annotations

import asyncio
import errno
import random
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import cache, partial, wraps
from typing import ParamSpec, TypeVar

import pyarrow as pa
import tenacity

from pipelines.store.storage import is_remote

P = ParamSpec("P")
T = TypeVar("T")
_ENDED = "isthmus_retries_ended"
_MANY_DENIED = 8


class Fault(StrEnum):
    """What kind of failure an error is, as far as trying again goes."""

    TRANSIENT = "transient"
    NOT_FOUND = "not_found"
    DENIED = "denied"
    BAD_CREDENTIALS = "bad_credentials"
    EXPIRED = "expired"
    OTHER = "other"


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """How often and how patiently a step is tried again. Waits are drawn from [0, bound): full jitter.

    Attributes:
        attempts: tries of a step that fails transiently, the first one counted in.
        base_s: bound of the first wait in seconds; it doubles from try to try.
        cap_s: what the bound never exceeds.
        missing_attempts: tries of what a store says is not there; stores can be late, but dead links are common.
    """

    attempts: int = 8
    base_s: float = 0.2
    cap_s: float = 20.0
    missing_attempts: int = 4

    def allows(self, fault: Fault, attempt: int) -> bool:
        """Whether there is another try after `attempt` tries."""
        limits = {Fault.TRANSIENT: self.attempts, Fault.NOT_FOUND: self.missing_attempts}
        return attempt < limits.get(fault, 1)

    def bound_s(self, attempt: int) -> float:
        """The bound of the wait after `attempt` tries."""
        return min(self.cap_s, self.base_s * 2.0 ** (attempt - 1))


DEFAULT = RetryPolicy()
# For a job's first requests: an endpoint that is spelled wrongly is to be told soon.
CONTACT = RetryPolicy(attempts=6)
_DENIED_CODES = {"AccessDenied", "AllAccessDisabled", "Forbidden", "403", "401"}
_BAD_CREDENTIALS_CODES = {
    *("AccountProblem", "InvalidAccessKeyId", "SignatureDoesNotMatch", "RequestTimeTooSkewed", "InvalidToken"),
}
_EXPIRED_CODES = {"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired"}
_MISSING_CODES = {"NoSuchKey", "404", "NoSuchVersion"}
_TRANSIENT_CODES = {
    *("SlowDown", "ServiceUnavailable", "InternalError", "RequestTimeout", "Throttling", "ThrottlingException"),
    *("OperationAborted", "IncompleteBody", "408", "429", "500", "502", "503", "504"),
}
_TRANSIENT_ERRNOS = {
    *(errno.EBUSY, errno.EREMOTEIO, errno.ETIMEDOUT, errno.ECONNRESET, errno.ECONNABORTED, errno.ECONNREFUSED),
    *(errno.EPIPE, errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EAGAIN),
}
_TRANSIENT_CLASSES = {
    *("HTTPClientError", "ConnectionError", "IncompleteReadError", "ResponseParserError", "ResponseStreamingError"),
    *("ClientConnectionError", "ClientPayloadError", "ServerTimeoutError", "EndpointConnectionError"),
}
# Of Lance an error is a text. Its statuses and codes stand in fixed places, which no URI looks like.
_CODE_IN_TEXT = re.compile(r"<Code>(\w+)</Code>|status code: (\d{3})")
_TRANSIENT_TEXT = re.compile(
    r"HTTP error: |error sending request|error decoding response body|operation timed out|timeout occurred"
    r"|retry_timeout: |connection (reset|closed)",
    re.IGNORECASE,
)
_MISSING_TEXT = re.compile(r"LanceError\(NotFound\)|\bNot found: |was not found|Object at location .* not found")


def classify(error: BaseException) -> Fault:
    """What kind of failure an error is, by itself and by its causes; a refusal outweighs what came of it."""
    kinds = {_kind(link) for link in _causes(error)}
    order = (Fault.EXPIRED, Fault.BAD_CREDENTIALS, Fault.DENIED, Fault.NOT_FOUND, Fault.TRANSIENT)
    return next((kind for kind in order if kind in kinds), Fault.OTHER)


def retry(
    step: Callable[[], T], uri: str, policy: RetryPolicy = DEFAULT, sleep: Callable[[float], None] = time.sleep
) -> T:
    """What `step` returns, tried again as the policy says where `uri` is on a store; errors on disk are final.

    Args:
        step: can be done again without harm.
        uri: what the step is about.
        policy: how often.
        sleep: waits for seconds.

    Raises:
        PermissionError: the store refuses; never tried again.
        FileNotFoundError: it still is not there.
        ConnectionError: the step failed as often as the policy allows.
        Exception: whatever else the step raises, at once and as it is.
    """
    if not is_remote(uri):
        return step()
    retrying = tenacity.Retrying(
        retry=_may_help(policy),
        wait=lambda state: random.uniform(0.0, policy.bound_s(state.attempt_number)),
        sleep=sleep,
        reraise=True,
    )
    try:
        return retrying(step)
    except Exception as error:
        if (final := _final(error, uri, retrying.statistics.get("attempt_number", 1))) is error:
            raise
        raise final from None  # the cause may carry headers of the request


def retried(step: Callable[P, T]) -> Callable[P, T]:
    """A function tried again as by `retry`; its first argument is a table or dataset, and it can be done again."""

    @wraps(step)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        return retry(partial(step, *args, **kwargs), str(args[0].uri))  # type: ignore[attr-defined]

    return call


def read_again(
    read: Callable[[], Iterator[pa.Table]],
    uri: str,
    policy: RetryPolicy = DEFAULT,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[pa.Table]:
    """The tables of `read()`; where it breaks off it is called again, and the rows that were yielded are skipped.

    Args:
        read: gives the same rows in the same order each time.
        uri: the file, for messages.
        policy: how often, from one table to the next.
        sleep: waits for seconds.

    Raises:
        FileNotFoundError: a listed file is gone; names it and the remedy.
    """
    done = 0
    tables: Iterator[pa.Table] | None = None

    def step() -> pa.Table | None:
        nonlocal tables
        tables = tables or _skip(read(), done)
        try:
            return next(tables, None)
        except Exception:
            tables = None
            raise

    while True:
        try:
            table = retry(step, uri, policy, sleep)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{uri} was listed and is gone; run the job again, it lists anew") from error
        if table is None:
            return
        done += table.num_rows
        yield table


def has_ended(error: BaseException) -> bool:
    """Whether an error is what `retry` raises in the end: one line with the remedy, not to be tried again."""
    return _ENDED in vars(error)


def is_of_the_store(error: BaseException) -> bool:
    """Whether a store failed or refused, rather than said that something is not there."""
    return classify(error) in (Fault.TRANSIENT, Fault.DENIED, Fault.BAD_CREDENTIALS, Fault.EXPIRED)


class Refusals:
    """Tells a store that refuses the credentials from one that refuses single objects.

    Expired or unknown credentials stop a job: no other request would fare better. "Access denied" is also what a store
    says of an object with rights of its own, or, to those who may not list, of one that is not there; such an object
    is its row's loss alone. It stops a job only where a bucket gave nothing yet and refused several objects.
    """

    def __init__(self) -> None:
        self._served: set[str] = set()
        self._denied: Counter[str] = Counter()

    def served(self, uri: str) -> None:
        """An object was read."""
        self._served.add(_bucket(uri))

    def stops(self, uri: str, error: BaseException) -> bool:
        """Whether a job should end with this error, rather than go on without the object."""
        if not is_remote(uri):
            return False
        fault = classify(error)
        if fault is not Fault.DENIED:
            return fault in (Fault.EXPIRED, Fault.BAD_CREDENTIALS)
        self._denied[_bucket(uri)] += 1
        return _bucket(uri) not in self._served and self._denied[_bucket(uri)] >= _MANY_DENIED


def _bucket(uri: str) -> str:
    return "/".join(uri.split("/", 3)[:3])


@cache
def refusals() -> Refusals:
    """Those of this process."""
    return Refusals()


def _may_help(policy: RetryPolicy) -> Callable[[tenacity.RetryCallState], bool]:
    def again(state: tenacity.RetryCallState) -> bool:
        error = state.outcome.exception() if state.outcome else None
        if error is None or has_ended(error):
            return False
        return policy.allows(classify(error), state.attempt_number)

    return again


def _final(error: Exception, uri: str, attempts: int) -> Exception:
    """The error that ends the tries: one line with the remedy, marked, so that a step around it does not go on."""
    if has_ended(error):
        return error
    fault = classify(error)
    final: Exception
    if fault is Fault.EXPIRED:
        final = PermissionError(f"{uri}: the credentials have expired; renew them and run the same command again")
    elif fault in (Fault.DENIED, Fault.BAD_CREDENTIALS):
        final = PermissionError(
            f"{uri}: the store refuses these credentials; check AWS_ACCESS_KEY_ID, its rights to read and write, "
            "and whether it has expired"
        )
    elif fault is Fault.NOT_FOUND:
        final = error if isinstance(error, FileNotFoundError) else FileNotFoundError(f"{uri}: not found")
    elif fault is Fault.TRANSIENT:
        final = ConnectionError(
            f"{uri}: the store failed {attempts} times in a row, the last time with {_summary(error)}; "
            "check the endpoint and the network, then run the same command again"
        )
    else:
        return error
    vars(final)[_ENDED] = fault
    return final


def _summary(error: BaseException) -> str:
    """An error in few words: the store's code, or the error's class."""
    codes = [code for link in _causes(error) for code in _codes(link)]
    return codes[-1] if codes else f"{type(error).__name__}: {str(error).splitlines()[0][:160] if str(error) else ''}"


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error, and what it says it was raised from."""
    link: BaseException | None = error
    for _ in range(8):
        if link is None:
            return
        yield link
        link = link.__cause__


def _kind(error: BaseException) -> Fault:
    if has_ended(error):
        return Fault(vars(error)[_ENDED])  # its cause, and so the store's code, was left behind
    for code in _codes(error):
        for kind, codes in _CODES.items():
            if code in codes:
                return kind
    if isinstance(error, PermissionError):
        return Fault.DENIED
    if isinstance(error, FileNotFoundError):
        return Fault.NOT_FOUND
    names = {base.__name__ for base in type(error).__mro__}
    if isinstance(error, TimeoutError | ConnectionError | asyncio.TimeoutError) or names & _TRANSIENT_CLASSES:
        return Fault.TRANSIENT
    if isinstance(error, OSError) and error.errno in _TRANSIENT_ERRNOS:
        return Fault.TRANSIENT
    return _kind_by_text(str(error)) if isinstance(error, OSError | ValueError | RuntimeError) else Fault.OTHER


def _kind_by_text(text: str) -> Fault:
    if "LanceError" not in text and "was not found" not in text:
        return Fault.OTHER
    if _MISSING_TEXT.search(text):
        return Fault.NOT_FOUND
    return Fault.TRANSIENT if _TRANSIENT_TEXT.search(text) else Fault.OTHER


def _codes(error: BaseException) -> list[str]:
    """The store's own error codes, of botocore as data, of Lance out of the text; the most telling one first."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        return [str(response.get("Error", {}).get("Code"))]
    text = str(error)
    found = [code or status for code, status in _CODE_IN_TEXT.findall(text)] if "LanceError" in text else []
    return sorted(found, key=str.isdigit)


def _skip(tables: Iterator[pa.Table], rows: int) -> Iterator[pa.Table]:
    """The tables without their first rows."""
    for table in tables:
        if rows < table.num_rows:
            yield table.slice(rows) if rows else table
        rows = max(0, rows - table.num_rows)


_CODES = {
    Fault.EXPIRED: _EXPIRED_CODES,
    Fault.BAD_CREDENTIALS: _BAD_CREDENTIALS_CODES,
    Fault.DENIED: _DENIED_CODES,
    Fault.NOT_FOUND: _MISSING_CODES,
    Fault.TRANSIENT: _TRANSIENT_CODES,
}
