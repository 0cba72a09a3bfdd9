"""What is loaded from the Hugging Face hub: names that may be pinned, and the commit that each stands for now.

A source is a local directory, or a name on the hub, pinned as ``NAME@REVISION`` to a branch, a tag or a commit. Needs
no torch.
"""

import json
import os
import re
from typing import NamedTuple

from distill.errors import UserError
from distill.io.hub_answers import HubUnreachable, Kind, failure_reason, hub_api, say

_DEFAULT = "main"
_REVISION = re.compile(r"(?!.*\.\.)\w[\w.+/-]*")  # as git has them: none leads out of a directory of the cache
_COMMIT = re.compile(r"[0-9a-f]{40}")
_COMMITS = "SWITCH_DISTILL_COMMITS"  # variable of the environment, see commits_environment

_known: dict[str, str] | None = None  # "KIND NAME REVISION" -> commit, in this process


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


def resolve_revision(source: str, kind: Kind, description: str) -> str | None:
    """The commit that ``source`` stands for now, in 40 hexadecimal digits; of a local directory, None.

    The hub is asked once per process, so that everything in it is of one commit. Where it does not answer, or must not
    be asked (HF_HUB_OFFLINE=1), what the local cache knows of the revision holds. A whole commit is not asked for.

    Args:
        description: names the source in messages.

    Raises:
        UserError: there is no such name or revision, or neither hub nor cache knows it; or a directory is pinned.
    """
    name, revision = split_revision(source)
    if os.path.isdir(name):
        if revision is not None:
            raise UserError(f"{description} is a directory, which has no revisions; leave out @{revision}")
        return None
    if revision is not None and not _REVISION.fullmatch(revision):
        raise UserError(
            f"{description} is pinned to {revision!r:.80}, no revision; name a branch, a tag or a commit after @"
        )
    revision = revision or _DEFAULT
    try:
        commit = _commit(name, revision, kind)
    except Exception as error:  # of many kinds: no such name, no such revision, no connection
        raise UserError(f"{description} is no directory, and {failure_reason(error, revision, kind)}") from error
    if not _COMMIT.fullmatch(commit):
        raise UserError(f"{description} has a damaged entry for {revision!r} in the hub's cache; delete it, or connect")
    return commit


def at_revision(source: str, kind: Kind, description: str) -> HubSource:
    """The name to load, and the commit to load it at: see ``resolve_revision``.

    Raises:
        UserError: as there.
    """
    return HubSource(split_revision(source).name, resolve_revision(source, kind, description))


def known_commits() -> dict[str, str]:
    """The commits that names stand for in this process, for ``take_commits`` in another one."""
    global _known
    if _known is None:
        _known = json.loads(os.environ.get(_COMMITS, "{}"))
    return _known


def take_commits(commits: dict[str, str]) -> None:
    """Let names stand for ``commits``, those of another process; the hub is not asked for them."""
    known_commits().update(commits)


def commits_environment() -> dict[str, str]:
    """Variables of the environment in which a new process takes the commits that names stand for in this one."""
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
        if not is_offline_mode():  # then nobody expects it to answer
            say(f"The hub does not answer ({unreachable}); using revision {revision!r} of {name} from the cache")
    known[key] = commit
    return commit
