"""Names on the Hugging Face hub, optionally pinned, and the commits that they refer to.

A source is a local directory, or a name on the hub. A name may be pinned to a branch, a tag or a commit, as
``NAME@REVISION``. Does not import torch.
"""

import json
import os
import re
from typing import NamedTuple

from distill.errors import UserError
from distill.io.hub_answers import HubUnreachable, Kind, failure_reason, hub_api, say

_DEFAULT = "main"
_REVISION = re.compile(r"(?!.*\.\.)\w[\w.+/-]*")  # as in git; ".." could lead out of the cache
_COMMIT = re.compile(r"[0-9a-f]{40}")
_COMMITS = "SWITCH_DISTILL_COMMITS"  # environment variable, see commits_environment

_known: dict[str, str] | None = None  # "KIND NAME REVISION" -> commit, in this process


class HubSource(NamedTuple):
    """A name on the hub and its revision, or a local directory and None."""

    name: str
    revision: str | None


def split_revision(source: str) -> HubSource:
    """Split ``NAME@REVISION``. The path of an existing local directory is not split."""
    if os.path.isdir(source):
        return HubSource(source, None)
    name, at, revision = source.partition("@")  # names on the hub do not contain @
    return HubSource(name, revision if at else None)


def resolve_revision(source: str, kind: Kind, description: str) -> str | None:
    """The commit that ``source`` refers to, in 40 hexadecimal digits; None for a local directory.

    A process asks the hub once per name and revision, so all its files are of one commit. If the hub does not answer or
    must not be asked (HF_HUB_OFFLINE=1), the commit comes from the local cache. A full commit needs no request.

    Args:
        source: a directory, or a name on the hub that may be pinned (``NAME@REVISION``).
        kind: of the repository.
        description: names the source in messages.

    Raises:
        UserError: the name or revision does not exist or is not in the cache, or a local directory is pinned.
    """
    name, revision = split_revision(source)
    if os.path.isdir(name):
        if revision is not None:
            raise UserError(f"{description} is a directory, which has no revisions; omit @{revision}")
        return None
    if revision is not None and not _REVISION.fullmatch(revision):
        raise UserError(
            f"{description} is pinned to {revision!r:.80}, which is not a revision; "
            "name a branch, a tag or a commit after @"
        )
    revision = revision or _DEFAULT
    try:
        commit = _commit(name, revision, kind)
    except Exception as error:  # of many kinds: no such name, no such revision, no connection
        raise UserError(f"{description} is not a directory, and {failure_reason(error, revision, kind)}") from error
    if not _COMMIT.fullmatch(commit):
        raise UserError(f"{description} has a damaged entry for {revision!r} in the hub's cache; delete it, or connect")
    return commit


def at_revision(source: str, kind: Kind, description: str) -> HubSource:
    """The name of ``source`` without its revision, and its commit from ``resolve_revision``.

    Raises:
        UserError: as for ``resolve_revision``.
    """
    return HubSource(split_revision(source).name, resolve_revision(source, kind, description))


def known_commits() -> dict[str, str]:
    """The commits that this process has resolved, for ``take_commits`` in another process."""
    global _known
    if _known is None:
        _known = json.loads(os.environ.get(_COMMITS, "{}"))
    return _known


def take_commits(commits: dict[str, str]) -> None:
    """Use the ``commits`` of another process without asking the hub."""
    known_commits().update(commits)


def commits_environment() -> dict[str, str]:
    """Environment variables that pass the resolved commits of this process to a new process."""
    return {_COMMITS: json.dumps(known_commits())}


def _commit(name: str, revision: str, kind: Kind) -> str:
    known, key = known_commits(), f"{kind} {name} {revision}"
    if key in known:
        return known[key]
    from huggingface_hub import HfApi, is_offline_mode  # slow to import, and most runs load nothing of it

    try:
        commit = hub_api().resolve_revision(name, repo_type=kind, revision=revision).resolved
    except HubUnreachable as unreachable:
        commit = HfApi().resolve_revision(name, repo_type=kind, revision=revision, local_files_only=True).resolved
        if not is_offline_mode():  # offline mode is intended, so it needs no message
            say(f"The hub does not answer ({unreachable}); using revision {revision!r} of {name} from the cache")
    known[key] = commit
    return commit
