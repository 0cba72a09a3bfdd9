"""YAML from anyone: plain values alone, of a size that can be looked at, every key once."""

import re
from pathlib import Path
from typing import Any

import yaml

LARGEST_FILE = 1_000_000  # bytes; a config has a few thousand
LARGEST_VALUE = 100_000  # keys and values, with aliases written out
DEEPEST = 50


class _Loader(yaml.SafeLoader):
    """Safe YAML that also reads 1e-3 as a number; YAML 1.1 wants 1.0e-3."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def parse_yaml(text: str) -> Any:
    """The value that ``text`` describes: None, a number, a text, a date, or lists and dicts of them.

    Raises:
        ValueError: it is no YAML, has a key twice, or becomes too large or too deep. The message is one line.
    """
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        if _written_out(node, {}) > LARGEST_VALUE:
            raise ValueError(f"with its aliases written out it has more than {LARGEST_VALUE:,} values")
        return loader.construct_document(node)
    except RecursionError:
        raise ValueError(f"it is nested more than {DEEPEST} levels deep, or an alias stands in itself") from None
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(" ".join(str(error).split()).partition("; use sys.")[0][:200]) from None
    except Exception:  # what a tag makes of a text that is not meant for it
        raise ValueError("a tag (!!...) stands before a value that is none of its kind") from None


def read_yaml(path: Path) -> Any:
    """``parse_yaml`` of a UTF-8 file.

    Raises:
        ValueError: as there, or the file cannot be read or is too large.
    """
    try:
        if (size := path.stat().st_size) > LARGEST_FILE:
            raise ValueError(f"it has {size:,} bytes, a config has at most {LARGEST_FILE:,}")
        return parse_yaml(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {error.start} is not UTF-8") from None
    except OSError as error:
        raise ValueError(f"it cannot be read ({error.strerror})") from None


def _written_out(node: yaml.Node, known: dict[int, int], depth: int = 1) -> int:
    """How many nodes ``node`` is when each alias is replaced by what it stands for; each is looked at once."""
    if depth > DEEPEST:
        raise RecursionError  # an alias inside of its own anchor too
    if id(node) in known:
        return known[id(node)]
    total = 1
    if isinstance(node, yaml.MappingNode):
        seen = set()
        for key, value in node.value:
            name = (key.tag, key.value) if isinstance(key, yaml.ScalarNode) else None
            if name in seen and name != ("tag:yaml.org,2002:merge", "<<"):
                raise ValueError(f"key {key.value} stands twice in line {key.start_mark.line + 1}")
            seen.add(name)
            total += _written_out(key, known, depth + 1) + _written_out(value, known, depth + 1)
    elif isinstance(node, yaml.SequenceNode):
        total += sum(_written_out(value, known, depth + 1) for value in node.value)
    known[id(node)] = total
    return total
