"""Requests to the Hugging Face hub: time limits, messages during a wait, and reasons of failures. Needs no torch."""

import contextlib
import logging
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from functools import partial
from threading import Thread, Timer
from typing import TYPE_CHECKING, Any, Literal

from distill.processes import is_main_process

if TYPE_CHECKING:
    from huggingface_hub import HfApi

Kind = Literal["model", "dataset"]

_ANSWER_SECONDS = 5.0  # time limit of an answer; a dead connection would otherwise block for long
_SILENT_SECONDS = 1.0  # time until a wait is announced
_RETRY_SECONDS = 60.0  # time until a hub that did not answer is asked again

_last_failure = -_RETRY_SECONDS  # time of the last request without an answer


class HubUnreachable(Exception):
    """The hub does not answer; the message is the cause."""


def hub_api() -> "HfApi":
    """An ``HfApi`` whose ``repo_info`` raises HubUnreachable if the hub does not answer within seconds."""
    from huggingface_hub import HfApi, errors  # slow to import, and most runs load nothing of it

    api = HfApi()
    ask = api.repo_info
    refused = (errors.HFValidationError, errors.RepositoryNotFoundError, errors.RevisionNotFoundError)

    def repo_info(repo_id: str, **how: Any) -> Any:
        global _last_failure
        if is_unreachable():
            raise HubUnreachable("as before")
        try:
            with announce_wait(f"Waiting up to {_ANSWER_SECONDS:.0f} s for the hub to name the commit of {repo_id}"):
                return _with_timeout(partial(ask, repo_id, timeout=_ANSWER_SECONDS, **how))
        except refused:
            raise
        except Exception as error:  # of many kinds: no connection, no answer, an answer from another server
            if getattr(getattr(error, "response", None), "status_code", None) in (401, 403):
                raise
            _last_failure = time.monotonic()
            cause = str(error).strip().split("\n")[0] or f"not in {_ANSWER_SECONDS:.0f} s"
            raise HubUnreachable(f"{cause:.100}") from error

    api.repo_info = repo_info  # type: ignore[method-assign]  # other methods of the library call it too
    return api


def is_unreachable() -> bool:
    """Whether offline mode is set, or the hub did not answer within the last minute."""
    from huggingface_hub import is_offline_mode

    return is_offline_mode() or time.monotonic() < _last_failure + _RETRY_SECONDS


@contextlib.contextmanager
def announce_wait(sentence: str) -> Iterator[None]:
    """Print ``sentence`` if the block takes long. The hub library's own messages about retries are hidden."""
    logger, timer = logging.getLogger("huggingface_hub"), Timer(_SILENT_SECONDS, say, [sentence])
    level, timer.daemon = logger.level, True
    logger.setLevel(logging.CRITICAL)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        logger.setLevel(level)


def say(sentence: str) -> None:
    """Print a line on stderr, only in the main process."""
    if is_main_process():
        print(sentence, file=sys.stderr, flush=True)


def unreachable_reason() -> str:
    """Why the hub is unreachable, for messages."""
    from huggingface_hub import is_offline_mode

    return "HF_HUB_OFFLINE is set" if is_offline_mode() else "it does not answer"


def failure_reason(error: Exception, revision: str, kind: Kind) -> str:
    """The cause and the remedy of a failed request: the rest of a message "... is not a directory, and ..."."""
    from huggingface_hub import errors

    thing = {"model": "model", "dataset": "data set"}[kind]
    if isinstance(error, errors.HFValidationError):
        return "not a name on the hub either; check the path"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"the hub has no revision {revision!r} of it; pin one that exists, or omit it"
    if isinstance(error, errors.GatedRepoError):
        return "the hub does not provide it: it is gated; request access on its page, then log in with: hf auth login"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"the hub has no {thing} of that name; check it, or log in if it is private, with: hf auth login"
    if isinstance(error, errors.RevisionResolutionError):
        return (
            f"the hub does not provide it: {unreachable_reason()}, and the local cache has no revision {revision!r} of "
            f"such a {thing}; connect, or check the name and pin a revision that was loaded here before"
        )
    return f"the hub does not provide it: {' '.join(str(error).split())[:200]}; check the name and the connection"


def _with_timeout(ask: Callable[[], Any]) -> Any:
    """Run ``ask`` in a thread with a time limit, because the library's own limit does not include the DNS lookup."""
    answer: Future[Any] = Future()

    def run() -> None:
        try:
            answer.set_result(ask())
        except Exception as error:
            answer.set_exception(error)

    Thread(target=run, daemon=True).start()
    return answer.result(_ANSWER_SECONDS)
