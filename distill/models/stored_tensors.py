"""Read the headers of weight files. Imports torch only for ``.bin`` files."""

from functools import lru_cache
from pathlib import Path

from distill.models.weight_files import (
    StoredTensors,
    damaged,
    find_weight_files,
    merge_headers,
    read_safetensors_header,
)


def read_headers(directory: Path, description: str) -> StoredTensors:
    """The tensors of all weight files of a directory.

    Args:
        directory: of the model.
        description: names the model in messages.

    Raises:
        UserError: a file is missing or damaged, a ``.bin`` file holds more than tensors, or index and files differ.
    """
    files, headers = find_weight_files(directory, description), {}
    for name in files.names:
        path = (directory / name).absolute()
        stat = path.stat()
        headers[name] = _read_header(path, description, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino)
    return merge_headers(files, headers, description)


@lru_cache(maxsize=1000)
def _read_header(path: Path, description: str, *_: int) -> StoredTensors:
    """The tensors of one weight file; raises as ``read_headers``. An unchanged file is read once per process."""
    try:
        if path.suffix == ".bin":
            from distill.models.pickled import read_pickled_header  # imports torch

            return read_pickled_header(path, description)
        with open(path, "rb") as file:
            return read_safetensors_header(file, path.stat().st_size, path.name, description)
    except OSError as error:
        raise damaged(description, path.name, error) from error
