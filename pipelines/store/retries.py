"""Retries of steps that failed because a store throttled, stalled, broke off, answered late or refused.

s3fs and Lance's object store retry a few times by themselves what they know to be harmless. This layer is above them
and repeats whole steps that are safe to repeat: a picture, a listing, a shard from the record where it broke off, a
staged group, a commit. A refusal (credentials, rights) is never retried.
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
    """The kind of a failure, as far as retries are concerned."""

    TRANSIENT = "transient"
    NOT_FOUND = "not_found"
    DENIED = "denied"
    BAD_CREDENTIALS = "bad_credentials"
    EXPIRED = "expired"
    OTHER = "other"


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """How often a step is retried, and how long it waits in between. Waits are drawn from [0, bound): full jitter.

    Attributes:
        attempts: most attempts of a step that fails transiently, the first one included.
        base_s: bound of the first wait in seconds; it doubles with each attempt.
        cap_s: upper limit of that bound in seconds.
        missing_attempts: most attempts for something that the store reports as missing. Stores can lag, but dead links
            are common.
    """

    attempts: int = 8
    base_s: float = 0.2
    cap_s: float = 20.0
    missing_attempts: int = 4

    def allows(self, fault: Fault, attempt: int) -> bool:
        """Whether another attempt is allowed after `attempt` attempts."""
        limits = {Fault.TRANSIENT: self.attempts, Fault.NOT_FOUND: self.missing_attempts}
        return attempt < limits.get(fault, 1)

    def bound_s(self, attempt: int) -> float:
        """The bound, in seconds, of the wait after `attempt` attempts."""
        return min(self.cap_s, self.base_s * 2.0 ** (attempt - 1))


DEFAULT = RetryPolicy()
# For a job's first requests: a misspelled endpoint should be reported soon.
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
# Lance's errors are plain text. Their statuses and codes stand in fixed places, in forms that no URI has.
_CODE_IN_TEXT = re.compile(r"<Code>(\w+)</Code>|status code: (\d{3})")
_TRANSIENT_TEXT = re.compile(
    r"HTTP error: |error sending request|error decoding response body|operation timed out|timeout occurred"
    r"|retry_timeout: |connection (reset|closed)",
    re.IGNORECASE,
)
_MISSING_TEXT = re.compile(r"LanceError\(NotFound\)|\bNot found: |was not found|Object at location .* not found")


def classify(error: BaseException) -> Fault:
    """The kind of an error, judged by itself and its causes. A refusal outranks the errors that it led to."""
    kinds = {_kind(link) for link in _causes(error)}
    order = (Fault.EXPIRED, Fault.BAD_CREDENTIALS, Fault.DENIED, Fault.NOT_FOUND, Fault.TRANSIENT)
    return next((kind for kind in order if kind in kinds), Fault.OTHER)


def retry(
    step: Callable[[], T], uri: str, policy: RetryPolicy = DEFAULT, sleep: Callable[[float], None] = time.sleep
) -> T:
    """The result of `step`. If `uri` is on a store, the step is retried as the policy says; errors on disk are final.

    Args:
        step: the step; it must be safe to repeat.
        uri: the object that the step works on; decides whether to retry, and appears in messages.
        policy: how often to retry, and how long to wait.
        sleep: called with the seconds to wait.

    Raises:
        PermissionError: the store refuses; never retried.
        FileNotFoundError: the object is still missing after all attempts.
        ConnectionError: the step failed as often as the policy allows.
        Exception: any other error of the step, at once and unchanged.
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
    """Run the decorated function under `retry`. Its first argument is a table or dataset; it must be safe to repeat."""

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
    """The tables of `read()`. If it breaks off, it is called again, and the rows already yielded are skipped.

    Args:
        read: gives the same rows in the same order each time.
        uri: the file, for messages.
        policy: how often to retry each table.
        sleep: called with the seconds to wait.

    Raises:
        FileNotFoundError: a listed file is gone; names the file and the remedy.
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
            raise FileNotFoundError(
                f"{uri} was listed and is gone; run the job again to list the files anew"
            ) from error
        if table is None:
            return
        done += table.num_rows
        yield table


def has_ended(error: BaseException) -> bool:
    """Whether `retry` raised this error as its final one: a single line with the remedy, not to be retried again."""
    return _ENDED in vars(error)


def is_of_the_store(error: BaseException) -> bool:
    """Whether the store failed or refused, as opposed to reporting something as missing."""
    return classify(error) in (Fault.TRANSIENT, Fault.DENIED, Fault.BAD_CREDENTIALS, Fault.EXPIRED)


class Refusals:
    """Tells a store that refuses the credentials from one that refuses single objects.

    Expired or unknown credentials stop a job, because no other request would succeed either. "Access denied" is
    ambiguous: a store also says it of an object with rights of its own, and, to users without the right to list, of a
    missing object. Such an object costs only its row. "Access denied" stops a job only if a bucket has served nothing
    yet and has refused eight objects.
    """

    def __init__(self) -> None:
        self._served: set[str] = set()
        self._denied: Counter[str] = Counter()

    def served(self, uri: str) -> None:
        """Note that an object of this bucket was read."""
        self._served.add(_bucket(uri))

    def stops(self, uri: str, error: BaseException) -> bool:
        """Whether the job should end with this error, as opposed to going on without the object."""
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
    """The instance of this process."""
    return Refusals()


def _may_help(policy: RetryPolicy) -> Callable[[tenacity.RetryCallState], bool]:
    def again(state: tenacity.RetryCallState) -> bool:
        error = state.outcome.exception() if state.outcome else None
        if error is None or has_ended(error):
            return False
        return policy.allows(classify(error), state.attempt_number)

    return again


def _final(error: Exception, uri: str, attempts: int) -> Exception:
    """The final error: one line with the remedy, marked so that an enclosing `retry` does not repeat it."""
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
    """An error in a few words: the store's code, or the class and first line of the error."""
    codes = [code for link in _causes(error) for code in _codes(link)]
    return codes[-1] if codes else f"{type(error).__name__}: {str(error).splitlines()[0][:160] if str(error) else ''}"


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and the chain of errors that it was raised from, up to eight."""
    link: BaseException | None = error
    for _ in range(8):
        if link is None:
            return
        yield link
        link = link.__cause__


def _kind(error: BaseException) -> Fault:
    if has_ended(error):
        return Fault(vars(error)[_ENDED])  # its cause, and with it the store's code, was dropped
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
    """The store's own error codes: as data from botocore, parsed from the text for Lance; the most specific first."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        return [str(response.get("Error", {}).get("Code"))]
    text = str(error)
    found = [code or status for code, status in _CODE_IN_TEXT.findall(text)] if "LanceError" in text else []
    return sorted(found, key=str.isdigit)


def _skip(tables: Iterator[pa.Table], rows: int) -> Iterator[pa.Table]:
    """The tables without their first `rows` rows."""
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
