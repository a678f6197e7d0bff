"""The YAML reader: 1.2 semantics, duplicate keys, line numbers, one clear error."""

from __future__ import annotations

from pathlib import Path

import pytest

from noscratch import yaml_reader
from noscratch.errors import NoscratchError

TEXT = """\
# a comment
rate: 1e-3
off: no
claims:
  - id: a
    test: {margin: 1.0,
           alpha: 0.05}
  - id: b
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "file.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_version_1_2_scalars(tmp_path: Path) -> None:
    data = yaml_reader.read(write(tmp_path, TEXT)).data
    assert data["rate"] == 0.001
    assert data["off"] == "no"
    assert type(data) is dict
    assert type(data["claims"]) is list


def test_lines(tmp_path: Path) -> None:
    document = yaml_reader.read(write(tmp_path, TEXT))
    assert document.line() == 2
    assert document.line("off") == 3
    assert document.line("claims", 0, "test") == 6
    assert document.line("claims", 0, "test", "alpha") == 7
    assert document.line("claims", 1) == 8
    assert document.line("claims", 1, "absent", "deeper") == 8, "an absent key stands at its nearest ancestor"
    assert document.line("claims", 7) == 4


@pytest.mark.parametrize(
    ("text", "line", "problem"),
    [
        ("a: 1\nb: 2\na: 3\n", 3, "duplicate key"),
        ("a:\n  b: 1\n  b: 2\n", 3, "duplicate key"),
        ("a: 1\nb: [1, 2\n", 3, "expected"),
        ("a: !!python/object:os.system x\n", 1, "constructor"),
        ("- 1\n- 2\n", 1, "mapping"),
        ("", 1, "mapping"),
    ],
)
def test_refused(tmp_path: Path, text: str, line: int, problem: str) -> None:
    with pytest.raises(NoscratchError, match=rf"file\.yaml:{line}: .*{problem}"):
        yaml_reader.read(write(tmp_path, text))


def test_unreadable(tmp_path: Path) -> None:
    with pytest.raises(NoscratchError, match="cannot be read"):
        yaml_reader.read(tmp_path / "absent.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"a: \xe9\n")
    with pytest.raises(NoscratchError, match="UTF-8"):
        yaml_reader.read(tmp_path / "latin.yaml")
