"""Files of models and data sets on the Hugging Face hub: from the local cache where it has them, else downloaded there.

A commit never changes, so that the hub is not asked for what the cache has whole of it. Needs no torch.
"""

from pathlib import Path

from distill.errors import UserError
from distill.io.hub import HubSource, at_revision
from distill.io.hub_answers import (
    HubUnreachable,
    Kind,
    announce_wait,
    failure_reason,
    hub_api,
    is_unreachable,
    unreachable_reason,
)

# Names of files, as globs; messages name the first. Of a tokenizer, what the kinds that T5 can have are made of.
CONFIG = ("config.json",)
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "model-*.safetensors", "generation_config.json")
PICKLED_WEIGHTS = ("pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model-*.bin")
TOKENIZER = (
    *("tokenizer.json", "tokenizer_config.json", "spiece.model", "tokenizer.model", "config.json"),
    *("special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt"),
)


class HubFilesUnavailable(UserError):
    """The hub must be asked for files, and does not answer."""


def local_files(source: str, kind: Kind, description: str, files: tuple[str, ...]) -> Path:
    """The directory of a source: itself, or of a name on the hub one in the cache, downloaded where it has to be.

    Args:
        source: a directory, or a name on the hub that may be pinned (``NAME@REVISION``).
        description: names it in messages.
        files: those that are wanted of the hub. It is no error that there are none.

    Raises:
        HubFilesUnavailable: the hub does not answer, and the cache has not all that is wanted.
        UserError: there is no such source, or the hub does not give its files.
    """
    if (found := cached_files(source, kind, description, files)) is not None:
        return found
    from huggingface_hub import snapshot_download

    name, commit = at_revision(source, kind, description)
    assert commit is not None  # a directory has been found
    try:
        _check_answer(name, commit, kind, description, files[0])
    except HubFilesUnavailable:
        if (
            found := cached_files(source, kind, description, files)
        ) is not None:  # now that the hub is known to be away
            return found
        raise
    try:
        with announce_wait(f"Waiting for the hub to send {files[0]} of {name}, or the like (Ctrl-C stops waiting)"):
            found = Path(snapshot_download(name, repo_type=kind, revision=commit, allow_patterns=list(files)))
        found.mkdir(parents=True, exist_ok=True)  # where the repository has none of them
        return found
    except Exception as error:  # of many kinds: no permission, a connection that breaks off
        raise UserError(f"{description} is no directory, and {failure_reason(error, commit, kind)}") from error


def cached_files(source: str, kind: Kind, description: str, files: tuple[str, ...]) -> Path | None:
    """``local_files`` without the hub; None where the cache may lack some of them.

    Where the hub is away, whatever the cache has of the commit must do, if nothing says that some of it is missing.

    Raises:
        UserError: there is no such source.
    """
    name, commit = at_revision(source, kind, description)
    return (
        Path(name)
        if commit is None
        else _in_cache(name, commit, kind, list(files), require_complete=not is_unreachable())
    )


def dataset_place(source: str, description: str) -> HubSource:
    """What ``datasets`` is to read: a directory, or a name on a hub that answers, at its commit.

    Raises:
        HubFilesUnavailable: the hub does not answer, and the cache has not the whole data set.
        UserError: there is no such data set.
    """
    name, commit = at_revision(source, "dataset", description)
    if commit is None:
        return HubSource(name, None)
    if (directory := _in_cache(name, commit, "dataset", None, require_complete=True)) is not None:
        return HubSource(str(directory), None)
    _check_answer(name, commit, "dataset", description, "files")
    return HubSource(name, commit)


def _in_cache(name: str, commit: str, kind: Kind, wanted: list[str] | None, *, require_complete: bool) -> Path | None:
    """The directory of a commit in the cache; None where there is none, or where it is known to lack files.

    Args:
        wanted: globs of files; None for all.
        require_complete: None too where nobody knows which files there are, as in a cache that another program has
            filled.
    """
    from huggingface_hub import errors, get_cached_repo_tree, snapshot_download

    try:
        if require_complete:
            get_cached_repo_tree(name, repo_type=kind, revision=commit)
        return Path(
            snapshot_download(name, repo_type=kind, revision=commit, allow_patterns=wanted, local_files_only=True)
        )
    except (errors.CachedRepoTreeNotFoundError, errors.LocalEntryNotFoundError):
        return None


def _check_answer(name: str, commit: str, kind: Kind, description: str, file: str) -> None:
    """Ask the hub for a commit. Downloads from a hub that does not answer would try again for minutes."""
    try:
        hub_api().repo_info(name, repo_type=kind, revision=commit)
    except HubUnreachable as unreachable:
        raise HubFilesUnavailable(
            f"{description} is no directory, and the hub does not give its {file} at {commit[:12]}: "
            f"{unreachable_reason()}, and the local cache has not all of it; connect, or check the name and the "
            "revision"
        ) from unreachable
    except Exception as error:  # of many kinds: no such commit, no permission
        raise UserError(f"{description} is no directory, and {failure_reason(error, commit, kind)}") from error
