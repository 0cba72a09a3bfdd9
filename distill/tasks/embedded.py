"""Sources that need no download: docstrings of the standard library, names and dates of CLDR, messages of Django."""

import ast
import datetime
import gettext
import importlib.util
import re
import textwrap
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

from distill.data.corpus import corpus_files
from distill.data.rows import Row
from distill.errors import UserError

_LONGEST_NAME = 40  # characters of a name of CLDR; longer ones are descriptions
_FIRST_DATE, _NUM_DAYS, _NUM_DATES = datetime.date(2000, 1, 1), 7_305, 300
_NAMES = ("languages", "territories", "scripts", "currency_names")


class Embedded(NamedTuple):
    """A source that an installed package contains."""

    files: Callable[[], list[Path]]  # in a fixed order
    rows: Callable[[list[Path]], Iterator[Row]]  # of these files
    version: int = 1  # raise it with every change to the rows: data of an older version are prepared again


def _docstring_files() -> list[Path]:
    return [path for path in corpus_files("stdlib") if path.suffix == ".py"]


def _docstring_rows(files: list[Path]) -> Iterator[Row]:
    """Functions of the standard library, without their docstrings, and the first lines of these."""
    for path in files:
        try:
            text = path.read_text(encoding="utf-8")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of invalid escape sequences in old modules
                tree = ast.parse(text)
        except (SyntaxError, UnicodeDecodeError):  # lib2to3 has files of Python 2
            continue
        lines = text.split("\n")  # as ast counts lines; splitlines also splits at form feeds
        for node in ast.walk(tree):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or len(node.body) < 2:
                continue
            if summary := (ast.get_docstring(node) or "").strip().partition("\n")[0].strip():
                docstring, rest = node.body[:2]
                kept = [*lines[node.lineno - 1 : docstring.lineno - 1], *lines[rest.lineno - 1 : node.end_lineno]]
                source = textwrap.dedent("\n".join(kept))
                values = {"source": source, "summary": summary, "name": node.name, "module": path.stem}
                yield Row(f"line {node.lineno} of {path}", values)


def _locale_files(source: str) -> list[Path]:
    return sorted((_package("babel", source) / "locale-data").glob("*.dat"))


def _name_rows(files: list[Path]) -> Iterator[Row]:
    """English names of languages, territories, scripts and currencies, and their names in a locale.

    A locale has its own names, not those that it inherits. English locales are left out.
    """
    from babel import localedata

    data = {path.stem: localedata.load(path.stem, merge_inherited=False) for path in files}
    english = data["en"]
    for locale in sorted(name for name in data if name.partition("_")[0] != "en"):
        for kind in _NAMES:
            names = data[locale].get(kind) or {}
            for code, source in english[kind].items():
                name = names.get(code)
                if isinstance(name, str) and max(len(name), len(source)) < _LONGEST_NAME and name.strip():
                    values = {"locale": locale, "english": source, "name": name, "kind": kind.removesuffix("_names")}
                    yield Row(f"{kind} {code} of locale {locale}", values)


def _date_rows(files: list[Path]) -> Iterator[Row]:
    """Dates of twenty years, and how they are written out in each locale that has names of months of its own.

    Every locale has the same dates, so that a split by date holds each one out in all locales. A year has fifteen
    dates, so that a split leaves dates of every year for training. Otherwise a held-out year has a token that no model
    knows, and a few dates decide the loss.
    """
    from babel import Locale, localedata
    from babel.dates import format_date

    # Multiples of the golden ratio are evenly spread, without a period of months or weekdays.
    days = [_FIRST_DATE + datetime.timedelta(number * 4_514 % _NUM_DAYS) for number in range(_NUM_DATES)]
    for locale in (path.stem for path in files):
        own = localedata.load(locale, merge_inherited=False)
        months, pattern = (own.get("months") or {}).get("format") or {}, (own.get("date_formats") or {}).get("long")
        names = months.get("wide") if isinstance(months, dict) else None
        if pattern is None or not isinstance(names, dict) or re.fullmatch(r"M\d+", names[1]):
            continue  # the locale inherits them, or has none
        for day in days:
            try:
                written = format_date(day, "long", locale=Locale.parse(locale))
            except KeyError:  # the format has parts that the locale lacks
                break
            yield Row(f"date {day} of locale {locale}", {"locale": locale, "date": day.isoformat(), "written": written})


def _message_files() -> list[Path]:
    return sorted(_package("django", "django:messages").glob("**/locale/*/LC_MESSAGES/*.mo"))


def _message_rows(files: list[Path]) -> Iterator[Row]:
    """Django's English messages, and their translations. Of a message with plurals, the first form is used."""
    for path in files:
        with open(path, "rb") as file:
            # The class has no public method that lists its messages.
            catalogue = gettext.GNUTranslations(file)._catalog  # type: ignore[attr-defined]
        for key, message in catalogue.items():
            source, form = key if isinstance(key, tuple) else (key, 0)
            source = source.rpartition("\x04")[2]  # without the context
            if source.strip() and message.strip() and form == 0:
                values = {"language": path.parts[-3], "source": source, "message": message}
                yield Row(f"message {source!r:.60} of {path}", values)


def _package(name: str, source: str) -> Path:
    """The directory of an installed package, which is not imported."""
    found = importlib.util.find_spec(name)
    if found is None or found.origin is None:
        raise UserError(f"{source} needs the package {name}; install it: pip install {name}")
    return Path(found.origin).parent


EMBEDDED: dict[str, Embedded] = {
    "stdlib:docstrings": Embedded(_docstring_files, _docstring_rows, version=2),
    "babel:names": Embedded(partial(_locale_files, "babel:names"), _name_rows),
    "babel:dates": Embedded(partial(_locale_files, "babel:dates"), _date_rows, version=2),
    "django:messages": Embedded(_message_files, _message_rows),
}
