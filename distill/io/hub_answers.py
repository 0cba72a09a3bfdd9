"""Asking the Hugging Face hub: how long it is waited for, who is told so, and what its answers mean. Needs no torch."""

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

_ANSWER_SECONDS = 5.0  # for the hub to answer; without, a connection that leads nowhere is waited for
_SILENT_SECONDS = 1.0  # seconds until it is said what is waited for
_RETRY_SECONDS = 60.0  # seconds until a hub that did not answer is asked again

_last_failure = -_RETRY_SECONDS  # time of the last question that the hub did not answer


class HubUnreachable(Exception):
    """The hub does not answer; the message says how that shows."""


def hub_api() -> "HfApi":
    """An ``HfApi`` whose ``repo_info`` is answered in seconds, and raises HubUnreachable where it is not."""
    from huggingface_hub import HfApi, errors  # slow to import, and most runs load nothing of it

    api = HfApi()
    ask = api.repo_info
    refused = (errors.HFValidationError, errors.RepositoryNotFoundError, errors.RevisionNotFoundError)

    def repo_info(repo_id: str, **how: Any) -> Any:
        global _last_failure
        if is_unreachable():
            raise HubUnreachable("as before")
        try:
            with announce_wait(
                f"Waiting up to {_ANSWER_SECONDS:.0f} s for the hub to say at which commit {repo_id} is"
            ):
                return _with_timeout(partial(ask, repo_id, timeout=_ANSWER_SECONDS, **how))
        except refused:
            raise
        except Exception as error:  # of many kinds: no connection, no answer, an answer of somebody else
            if getattr(getattr(error, "response", None), "status_code", None) in (401, 403):
                raise
            _last_failure = time.monotonic()
            cause = str(error).strip().split("\n")[0] or f"not in {_ANSWER_SECONDS:.0f} s"
            raise HubUnreachable(f"{cause:.100}") from error

    api.repo_info = repo_info  # type: ignore[method-assign]  # the library's own methods call it too
    return api


def is_unreachable() -> bool:
    """Whether the hub must not be asked, or did not answer a moment ago."""
    from huggingface_hub import is_offline_mode

    return is_offline_mode() or time.monotonic() < _last_failure + _RETRY_SECONDS


@contextlib.contextmanager
def announce_wait(sentence: str) -> Iterator[None]:
    """Say ``sentence`` where the block takes long. What the hub's library says of its attempts is not shown."""
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
    """A line on stderr, in the main process alone."""
    if is_main_process():
        print(sentence, file=sys.stderr, flush=True)


def unreachable_reason() -> str:
    """Why the hub gives nothing, where it is away."""
    from huggingface_hub import is_offline_mode

    return "HF_HUB_OFFLINE is set" if is_offline_mode() else "it does not answer"


def failure_reason(error: Exception, revision: str, kind: Kind) -> str:
    """The rest of a sentence that begins with what is no directory: the cause and what to do."""
    from huggingface_hub import errors

    thing = {"model": "model", "dataset": "data set"}[kind]
    if isinstance(error, errors.HFValidationError):
        return "no name on the hub either; check the path"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"the hub has no revision {revision!r} of it; pin one that is there, or leave it out"
    if isinstance(error, errors.GatedRepoError):
        return "the hub does not give it: it is gated; ask for access on its page, then log in with: hf auth login"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"the hub has no {thing} of that name; check it, or where it is private log in with: hf auth login"
    if isinstance(error, errors.RevisionResolutionError):
        return (
            f"the hub does not give it: {unreachable_reason()}, and the local cache has no revision {revision!r} of "
            f"such a {thing}; connect, or check the name and pin a revision that was loaded here before"
        )
    return f"the hub does not give it: {' '.join(str(error).split())[:200]}; check the name and the connection"


def _with_timeout(ask: Callable[[], Any]) -> Any:
    """In a thread of its own, because the library's time limit does not hold for the look-up of the hub's address."""
    answer: Future[Any] = Future()

    def run() -> None:
        try:
            answer.set_result(ask())
        except Exception as error:
            answer.set_exception(error)

    Thread(target=run, daemon=True).start()
    return answer.result(_ANSWER_SECONDS)
