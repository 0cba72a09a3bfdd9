"""Files of models and data sets on the Hugging Face hub, from the local cache, or downloaded to it.

A commit never changes, so the hub is not asked for files that are complete in the cache. Does not import torch.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from rich.filesize import decimal

from distill.errors import ExpectedError, UserError
from distill.io.disk import require_space
from distill.io.hub import HubSource, at_revision
from distill.io.hub_answers import (
    HubUnreachable,
    Kind,
    announce_wait,
    failure_reason,
    hub_api,
    is_unreachable,
    say,
    unreachable_reason,
)

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoSibling

# Globs of file names; messages name the first. TOKENIZER has the files of all tokenizer types that T5 can have.
CONFIG = ("config.json",)
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "model-*.safetensors", "generation_config.json")
PICKLED_WEIGHTS = ("pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model-*.bin")
TOKENIZER = (
    *("tokenizer.json", "tokenizer_config.json", "spiece.model", "tokenizer.model", "config.json"),
    *("special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt"),
)


_LARGE = 10**8  # bytes of a download that is announced

DISK_HINT = "free some, or set HF_HOME to a directory of another disk"


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
        DiskFull: the disk of the cache has no space for them.
    """
    if (found := cached_files(source, kind, description, files)) is not None:
        return found
    from huggingface_hub import snapshot_download

    name, commit = at_revision(source, kind, description)
    assert commit is not None  # cached_files has returned local directories
    try:
        listed = _listing(name, commit, kind, description, files[0])
    except HubFilesUnavailable:
        # Now that the hub is known to be unreachable, an incomplete cache is accepted.
        if (found := cached_files(source, kind, description, files)) is not None:
            return found
        raise
    _require_space(name, kind, description, listed, files)
    try:
        with announce_wait(f"Waiting for the hub to send {files[0]} or similar files of {name} (Ctrl-C stops waiting)"):
            found = Path(snapshot_download(name, repo_type=kind, revision=commit, allow_patterns=list(files)))
        found.mkdir(parents=True, exist_ok=True)  # if the repository has none of the files
        return found
    except ExpectedError:
        raise
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
    _listing(name, commit, "dataset", description, "files")
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


def sizes_on_hub(name: str, commit: str, description: str, file: str) -> dict[str, int]:
    """The size in bytes of each file of a model on the hub.

    Args:
        name: of the model.
        commit: in 40 hexadecimal digits.
        description: names the model in messages.
        file: the file that messages name.

    Raises:
        HubFilesUnavailable: the hub does not answer.
        UserError: the hub does not have the commit, or refuses it.
    """
    return {one.rfilename: one.size or 0 for one in _listing(name, commit, "model", description, file)}


def unavailable(description: str, file: str, commit: str) -> HubFilesUnavailable:
    """The error of a hub that does not answer while the cache lacks ``file``."""
    return HubFilesUnavailable(
        f"{description} is not a directory, and the hub does not provide its {file} at {commit[:12]}: "
        f"{unreachable_reason()}, and the local cache does not have all of it; connect, or check the name and the "
        "revision"
    )


def _listing(name: str, commit: str, kind: Kind, description: str, file: str) -> "list[RepoSibling]":
    """The files of a commit on a hub that answers. A download from one that does not answer would retry for minutes."""
    try:
        # A data set may have so many files that the hub needs longer for their sizes than its time limit.
        found = hub_api().repo_info(name, repo_type=kind, revision=commit, files_metadata=kind == "model")
        return getattr(found, "siblings", None) or []
    except HubUnreachable as unreachable:
        raise unavailable(description, file, commit) from unreachable
    except Exception as error:  # of many kinds: no such commit, no permission
        raise UserError(f"{description} is not a directory, and {failure_reason(error, commit, kind)}") from error


def _require_space(
    name: str, kind: Kind, description: str, listed: "list[RepoSibling]", files: tuple[str, ...]
) -> None:
    """Check the space for those files that the cache does not have at any commit, and announce a large download."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name
    from huggingface_hub.utils import filter_repo_objects  # type: ignore[attr-defined]

    cache = Path(constants.HF_HUB_CACHE)
    blobs = cache / repo_folder_name(repo_id=name, repo_type=kind) / "blobs"
    wanted = filter_repo_objects(listed, allow_patterns=list(files), key=lambda one: one.rfilename)
    names = {one.lfs.sha256 if one.lfs else one.blob_id: one.size or 0 for one in wanted}
    missing = sum(size for blob, size in names.items() if not (blob and (blobs / blob).exists()))
    require_space(cache, missing, f"the download of {description}", DISK_HINT)
    if missing >= _LARGE:
        say(f"Downloading {decimal(missing)} of {name} to {cache}")
