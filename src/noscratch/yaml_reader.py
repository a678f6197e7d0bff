"""The one way in which noscratch reads YAML: version 1.2, plain data, duplicate keys refused, a line for every value.

YAML 1.2 reads `1e-3` as a number and `no` as text; the 1.1 readers disagree on both, so no other reader is used.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, SequenceNode

from noscratch.errors import NoscratchError


@dataclass(frozen=True)
class Document:
    """A YAML file: `data` is its top-level mapping in plain Python types; `line` finds where a value stands."""

    path: Path
    data: dict[str, Any]
    text: str
    _root: Node

    def line(self, *keys: str | int) -> int:
        """The line (from 1) of the value at `keys`, or of its nearest ancestor that the file holds.

        A mapping's entry is found by its key as written, a sequence's by its index: `line("claims", 3, "test")`.
        """
        node, line = self._root, self._root.start_mark.line + 1
        for key in keys:
            if isinstance(node, MappingNode):
                found = next(((k, v) for k, v in node.value if k.value == str(key)), None)
                if found is None:
                    return line
                line, node = found[0].start_mark.line + 1, found[1]
            elif isinstance(node, SequenceNode) and isinstance(key, int) and key < len(node.value):
                node = node.value[key]
                line = node.start_mark.line + 1
            else:
                return line
        return line

    def replaced(self, values: Mapping[tuple[str, ...], str]) -> str:
        """The text with other plain scalars at these keys, which the file holds; every other character stays.

        Raises NoscratchError where a value is quoted, tagged or anchored: it may mean more than it says.
        """
        text = self.text
        spans = []
        for keys, value in values.items():
            node = self._root
            for key in keys:
                assert isinstance(node, MappingNode), keys
                node = next(v for k, v in node.value if k.value == key)
            start, end = node.start_mark.index, node.end_mark.index
            if text[start:end] != node.value:
                raise NoscratchError(
                    f"{self.path}:{self.line(*keys)}: only a plain value is replaced; got {text[start:end]!r}. Write "
                    f"{value!r} there yourself."
                )
            spans.append((start, end, value))
        for start, end, value in sorted(spans, reverse=True):
            text = text[:start] + value + text[end:]
        return text


def read(path: Path) -> Document:
    """Read one YAML 1.2 file whose top level is a mapping.

    Raises NoscratchError, with file and line, for a missing or unreadable file, broken YAML, a key given twice, or
    another top level than a mapping.
    """
    try:
        text = path.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise NoscratchError(
            f"{path}: cannot be read as UTF-8 text ({error}). Put the file there, or mend it."
        ) from error
    try:
        data = _yaml().load(text)
        root = _yaml().compose(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{path}:{mark.line + 1}" if mark is not None else str(path)
        problem = " ".join((error.problem or "cannot be parsed").split())
        raise NoscratchError(f"{where}: not valid YAML 1.2: {problem}. Mend this line.") from error
    except YAMLError as error:
        raise NoscratchError(f"{path}: not valid YAML 1.2: {error}. Mend the file.") from error
    if not isinstance(data, dict):
        raise NoscratchError(f"{path}:1: the top level must be a mapping of keys to values; got {type(data).__name__}.")
    return Document(path, data, text, root)


def _yaml() -> YAML:
    # A fresh instance per use: ruamel keeps parser state between calls. `pure` is what gives YAML 1.2 and marks.
    return YAML(typ="safe", pure=True)
