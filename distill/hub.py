"""What is loaded from the Hugging Face hub: names that may be pinned, and the commit that each stands for now.

A source is a local directory, or a name on the hub, pinned as ``NAME@REVISION`` to a branch, a tag or a commit. Needs
no torch.
"""

import os
import re
from functools import cache, partial
from typing import Literal, NamedTuple

from distill.errors import UserError

Kind = Literal["model", "dataset"]

_DEFAULT = "main"
_SECONDS = 10.0  # for the hub to answer; without, a connection that leads nowhere is waited for
_REVISION = re.compile(r"(?!.*\.\.)\w[\w.+/-]*")  # as git has them: none leads out of a directory of the cache
_COMMIT = re.compile(r"[0-9a-f]{40}")


class HubSource(NamedTuple):
    """A name on the hub and its revision; a local directory has none."""

    name: str
    revision: str | None


def split_revision(source: str) -> HubSource:
    """``NAME@REVISION`` in its two parts. What is a local directory as it stands is never split."""
    if os.path.isdir(source):
        return HubSource(source, None)
    name, at, revision = source.partition("@")  # no name on the hub holds one
    return HubSource(name, revision if at else None)


def resolve_revision(source: str, kind: Kind, what: str) -> str | None:
    """The commit that ``source`` stands for now, in 40 hexadecimal digits; of a local directory, None.

    The hub is asked once per process, so that everything in it is of one commit. Where it does not answer, or must not
    be asked (HF_HUB_OFFLINE=1), what the local cache knows of the revision holds. A whole commit is not asked for.

    Args:
        what: names the source in messages.

    Raises:
        UserError: there is no such name or revision, or neither hub nor cache knows it; or a directory is pinned.
    """
    name, revision = split_revision(source)
    if os.path.isdir(name):
        if revision is not None:
            raise UserError(f"{what} is a directory, which has no revisions; leave out @{revision}")
        return None
    if revision is not None and not _REVISION.fullmatch(revision):
        raise UserError(f"{what} is pinned to {revision!r:.80}, no revision; name a branch, a tag or a commit after @")
    revision = revision or _DEFAULT
    try:
        commit = _commit(name, revision, kind)
    except Exception as error:  # of many kinds: no such name, no such revision, no connection
        raise UserError(f"{what} is no directory, and {_reason(error, revision, kind)}") from error
    if not _COMMIT.fullmatch(commit):
        raise UserError(f"{what} has a damaged entry for {revision!r} in the hub's cache; delete it, or connect")
    return commit


def at_revision(source: str, kind: Kind, what: str) -> HubSource:
    """The name to load, and the commit to load it at: see ``resolve_revision``.

    Raises:
        UserError: as there.
    """
    return HubSource(split_revision(source).name, resolve_revision(source, kind, what))


@cache
def _commit(name: str, revision: str, kind: Kind) -> str:
    from huggingface_hub import HfApi, is_offline_mode  # which is slow to import, and most runs load nothing of it

    api = HfApi()
    api.repo_info = partial(api.repo_info, timeout=_SECONDS)
    offline = is_offline_mode()  # then it is no surprise that the hub is not reached, which would be warned of
    return api.resolve_revision(name, repo_type=kind, revision=revision, local_files_only=offline).resolved


def _reason(error: Exception, revision: str, kind: Kind) -> str:
    """The rest of a sentence that begins with what is no directory: cause and cure."""
    from huggingface_hub import errors, is_offline_mode

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
        state = "HF_HUB_OFFLINE is set" if is_offline_mode() else "it does not answer"
        return (
            f"the hub does not give it: {state}, and the local cache has no revision {revision!r} of such a {thing}; "
            "connect, or check the name and pin a revision that was loaded here before"
        )
    return f"the hub does not give it: {' '.join(str(error).split())[:200]}; check the name and the connection"
