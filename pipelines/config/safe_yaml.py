"""YAML with plain values only and without duplicate keys."""

import re
from pathlib import Path
from typing import Any

import yaml


class _Loader(yaml.SafeLoader):
    """A safe loader that also reads 1e-3 as a number (YAML 1.1 requires 1.0e-3), and rejects duplicate keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            name = (key.tag, key.value) if isinstance(key, yaml.ScalarNode) else None
            if name in seen and name != ("tag:yaml.org,2002:merge", "<<"):  # PyYAML would use the last value
                raise ValueError(f"duplicate key {key.value} in line {key.start_mark.line + 1}")
            seen.add(name)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def parse_yaml(text: str) -> Any:
    """Parse YAML.

    Returns:
        None, a bool, a number, a string, a date, or lists and dicts of them.

    Raises:
        ValueError: ``text`` is not valid YAML, or has a duplicate key. The message is one line.
    """
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        return None if node is None else loader.construct_object(node, deep=True)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(" ".join(str(error).split())[:200]) from None
    except Exception:  # PyYAML raises any exception if a value does not fit its tag
        raise ValueError("a tag (!!...) does not fit its value") from None


def read_yaml(path: Path) -> Any:
    """Parse a UTF-8 file with ``parse_yaml``.

    Raises:
        ValueError: as for ``parse_yaml``, or the file cannot be read.
    """
    try:
        return parse_yaml(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {error.start} is not UTF-8") from None
    except OSError as error:
        raise ValueError(f"it cannot be read ({error.strerror})") from None
