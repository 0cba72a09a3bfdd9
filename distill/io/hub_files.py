"""Files of models and data sets on the Hugging Face hub, from the local cache, or downloaded to it.

A commit never changes, so the hub is not asked for files that are complete in the cache. Does not import torch.
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

# Globs of file names; messages name the first. TOKENIZER has the files of all tokenizer types that T5 can have.
CONFIG = ("config.json",)
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "model-*.safetensors", "generation_config.json")
PICKLED_WEIGHTS = ("pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model-*.bin")
TOKENIZER = (
    *("tokenizer.json", "tokenizer_config.json", "spiece.model", "tokenizer.model", "config.json"),
    *("special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt"),
)


class HubFilesUnavailable(UserError):
    """Files are not in the local cache, and the hub does not answer."""


def local_files(source: str, kind: Kind, description: str, files: tuple[str, ...]) -> Path:
    """The directory of a source: the local one, or one in the hub's cache. Missing files are downloaded.

    Args:
        source: a directory, or a name on the hub that may be pinned (``NAME@REVISION``).
        kind: of the repository.
        description: names the source in messages.
        files: globs of the files to fetch from the hub. A repository need not have any of them.

    Raises:
        HubFilesUnavailable: the hub does not answer, and the cache does not have all files.
        UserError: the source does not exist, or its files cannot be downloaded.
    """
    if (found := cached_files(source, kind, description, files)) is not None:
        return found
    from huggingface_hub import snapshot_download

    name, commit = at_revision(source, kind, description)
    assert commit is not None  # cached_files has returned local directories
    try:
        _check_answer(name, commit, kind, description, files[0])
    except HubFilesUnavailable:
        # Now that the hub is known to be unreachable, an incomplete cache is accepted.
        if (found := cached_files(source, kind, description, files)) is not None:
            return found
        raise
    try:
        with announce_wait(f"Waiting for the hub to send {files[0]} or similar files of {name} (Ctrl-C stops waiting)"):
            found = Path(snapshot_download(name, repo_type=kind, revision=commit, allow_patterns=list(files)))
        found.mkdir(parents=True, exist_ok=True)  # if the repository has none of the files
        return found
    except Exception as error:  # of many kinds: no permission, a connection that breaks off
        raise UserError(f"{description} is not a directory, and {failure_reason(error, commit, kind)}") from error


def cached_files(source: str, kind: Kind, description: str, files: tuple[str, ...]) -> Path | None:
    """``local_files`` without a download; None if the cache may lack some of the files.

    If the hub is unreachable, the files of the commit in the cache are accepted unless some are known to be missing.

    Raises:
        UserError: the source does not exist.
    """
    name, commit = at_revision(source, kind, description)
    return (
        Path(name)
        if commit is None
        else _in_cache(name, commit, kind, list(files), require_complete=not is_unreachable())
    )


def dataset_place(source: str, description: str) -> HubSource:
    """The source that ``datasets`` should read: a directory, or a name and commit on a hub that answers.

    Raises:
        HubFilesUnavailable: the hub does not answer, and the cache does not have the full data set.
        UserError: the data set does not exist.
    """
    name, commit = at_revision(source, "dataset", description)
    if commit is None:
        return HubSource(name, None)
    if (directory := _in_cache(name, commit, "dataset", None, require_complete=True)) is not None:
        return HubSource(str(directory), None)
    _check_answer(name, commit, "dataset", description, "files")
    return HubSource(name, commit)


def _in_cache(name: str, commit: str, kind: Kind, wanted: list[str] | None, *, require_complete: bool) -> Path | None:
    """The directory of a commit in the cache; None if it is not there, or is known to lack files.

    Args:
        wanted: globs of files; None for all files.
        require_complete: also return None if the cache has no list of the commit's files, for example because another
            program has filled it.
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
    """Check that the hub answers. Without this, a download from a hub that does not answer retries for minutes."""
    try:
        hub_api().repo_info(name, repo_type=kind, revision=commit)
    except HubUnreachable as unreachable:
        raise HubFilesUnavailable(
            f"{description} is not a directory, and the hub does not provide its {file} at {commit[:12]}: "
            f"{unreachable_reason()}, and the local cache does not have all of it; connect, or check the name and the "
            "revision"
        ) from unreachable
    except Exception as error:  # of many kinds: no such commit, no permission
        raise UserError(f"{description} is not a directory, and {failure_reason(error, commit, kind)}") from error
