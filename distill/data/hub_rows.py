"""Rows of a data set in the hub's format: a repository, or a directory with the layout of one."""

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

from distill.data.rows import Reader, Row, csv_rows, json_rows, parquet_rows, read_rows, text_rows
from distill.errors import UserError
from distill.io.hub import split_revision
from distill.io.hub_files import dataset_place

if TYPE_CHECKING:
    from datasets import DatasetBuilder

# Options of data sets of every format. Columns are not cast to the types of features.
_NAMES = {"name", "version", "data_dir", "data_files", "description", "features"}
_ARCHIVES = (".zip", ".tar", ".tgz", ".zst", ".7z", ".rar")


def hub_dataset(corpus: str) -> tuple[str, str | None]:
    """The name without revision, and the config, of ``hf:NAME[@REVISION][:CONFIG]``."""
    name, _, config = corpus.removeprefix("hf:").partition(":")
    return split_revision(name).name, config or None


def hub_rows(corpus: str, revision: str | None, columns: list[str], key: str = "data.corpus") -> Iterator[Row]:
    """Yield the rows of the split ``train``, in order.

    ``datasets`` lists the files, and ``distill.data.rows`` reads them. ``datasets`` itself reads other formats.

    Args:
        corpus: ``hf:NAME[@REVISION][:CONFIG]``.
        revision: a commit of the data set; None for a local directory.
        columns: required in every row.
        key: of the config that names the data set, for messages.

    Raises:
        UserError: there is no such data set, config or split, or a file of it cannot be read.
    """
    import datasets  # slow to import, and few corpora need it

    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # it would print a traceback in addition to our message
    name, config = hub_dataset(corpus)
    place = dataset_place(f"{name}@{revision}" if revision else name, f"{key} {corpus!r}")
    try:
        builder = datasets.load_dataset_builder(place.name, config, revision=place.revision)
        files = [str(path) for path in (builder.config.data_files or {}).get("train", [])]
        if reader := _reader(builder, files):
            for path in files:
                yield from read_rows(path, reader, columns)
            return
        for number, values in enumerate(builder.as_streaming_dataset(split="train"), 1):
            absent = [column for column in columns if column not in values]
            problem = f"has no column {absent[0]!r} (columns: {', '.join(values)})" if absent else ""
            yield Row(f"row {number} of {corpus}", values, problem)
    except UserError:
        raise
    except Exception as error:  # datasets raises many kinds; each means that this corpus cannot be read
        cause = str(error.__cause__ or error).strip().split("\n")[0]
        raise UserError(f"{key} {corpus!r} cannot be read: {cause}") from error


def _reader(builder: "DatasetBuilder", files: list[str]) -> Reader | None:
    """None if ``datasets`` must read the files: other formats, archives, or options in the data set's card."""
    from datasets.packaged_modules.csv.csv import Csv
    from datasets.packaged_modules.json.json import Json
    from datasets.packaged_modules.parquet.parquet import Parquet
    from datasets.packaged_modules.text.text import Text

    options, defaults = builder.config, builder.BUILDER_CONFIG_CLASS()
    asked = {name for name in vars(options) if getattr(options, name) != getattr(defaults, name, None)} - _NAMES
    if not files or any(path.endswith(_ARCHIVES) for path in files) or asked - {"sep", "delimiter"}:
        return None
    if isinstance(builder, Csv):
        return partial(csv_rows, delimiter=options.delimiter or options.sep)
    readers = {Json: json_rows, Parquet: parquet_rows, Text: text_rows}
    return next((reader for kind, reader in readers.items() if isinstance(builder, kind)), None)
