"""Digests of code: what moves them, what does not, and that every Python gives the same."""

from __future__ import annotations

import ast
import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from noscratch import code
from noscratch.errors import NoscratchError

PLAIN = '''
"""A module."""
import math as m


def area(r: float, *, scale=1.0) -> float:
    """The area."""
    # a comment
    text = f"{r!r:>{10}} and {scale:.3f}" "tail"
    match r:
        case 0: return 0.0
        case _ if r > 1e3: return m.inf
    return m.pi * r ** 2 * scale


class Shape:
    """A shape."""
    sides: int = 3
    def name(self, /, a, *b, c=None, **d): return (lambda x, y=1: x + y)(a, *b)
'''

# Reformatted: other comments, docstrings, quotes, spaces, line breaks, parentheses.
SAME = """
'''Other words.'''
import math as m
def area(r: float, *,
         scale = 1.0) -> float:
    'Something else.'
    text = (f'{r!r:>{10}} and {scale:.3f}'
            'tail')
    match r:
        case 0:
            return 0.0
        case _ if (r > 1000.0):
            return m.inf
    return ((m.pi * r ** 2) * scale)
class Shape:
    sides: int = 3

    def name(self, /, a, *b, c=None, **d):
        return (lambda x, y=1: x + y)(a, *b)
"""

# sha256 of PLAIN's canonical form: must not change with the Python that runs this.
GOLDEN = "c2bf0e37c753a4adfdf7acf09efff584a9722fe605e0ee8ac2d84be5ca6b9f19"


def text(source: str) -> str:
    return code.canonical(ast.parse(source))


def test_layout_and_words_do_not_count() -> None:
    assert text(PLAIN) == text(SAME)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("scale=1.0", "scale=2.0"),
        ("r > 1e3", "r >= 1e3"),
        ("m.pi", "m.e"),
        ("sides: int = 3", "sides: int = 4"),
        (":.3f", ":.4f"),
        ("*b", "*e"),
    ],
)
def test_meaning_counts(before: str, after: str) -> None:
    changed = PLAIN.replace(before, after)
    assert changed != PLAIN
    assert text(changed) != text(PLAIN)


def interpreters() -> list[Path]:
    """Every other CPython from 3.11 on that this host has."""
    found = [shutil.which(f"python3.{minor}") for minor in range(11, 16)]
    candidates = [Path(path) for path in found if path] + sorted(Path.home().glob(".pyenv/versions/3.*/bin/python"))
    usable = {}
    for path in candidates:
        probe = subprocess.run(
            [path, "-c", "import sys; print(*sys.version_info[:2])"], capture_output=True, text=True, check=False
        )
        if probe.returncode == 0:
            major, minor = map(int, probe.stdout.split())
            if (major, minor) >= (3, 11):
                usable[major, minor] = path
    return [path for version, path in sorted(usable.items()) if version != sys.version_info[:2]]


def test_digest_is_golden_here() -> None:
    assert hashlib.sha256(text(PLAIN).encode()).hexdigest() == GOLDEN


def test_digest_is_golden_on_other_pythons() -> None:
    others = interpreters()
    if not others:
        pytest.skip("no second Python from 3.11 on found on this host")
    program = (
        "import ast, hashlib, sys; from noscratch import code; "
        "print(hashlib.sha256(code.canonical(ast.parse(sys.stdin.read())).encode()).hexdigest(), "
        "code.digest(('noscratch.store', 'noscratch.code')))"
    )
    here = code.digest(("noscratch.store", "noscratch.code"))
    for python in others:
        done = subprocess.run(
            [python, "-c", program],
            input=PLAIN,
            env={"PYTHONPATH": str(code.PACKAGE.parent)},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.split() == [GOLDEN, here], f"{python} gives another digest"


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small package in place of noscratch."""
    folder = tmp_path / "noscratch"
    (folder / "kernels").mkdir(parents=True)
    files = {
        "__init__.py": "",
        "errors.py": "class E(Exception): pass",
        "kernels/__init__.py": "from noscratch.errors import E",
        "kernels/conv.py": "from . import E\nfrom ..errors import E as F",
        "model.py": "def f():\n    from noscratch.kernels import conv\n    import json",
        "train.py": "import noscratch.model",
        "alone.py": "x = 1",
    }
    for name, content in files.items():
        (folder / name).write_text(content)
    monkeypatch.setattr(code, "PACKAGE", folder)
    code.forget()
    yield folder
    code.forget()


def test_closure_follows_imports_everywhere(package: Path) -> None:
    assert code.closure(("noscratch.train",)) == (
        "noscratch.errors",
        "noscratch.kernels",
        "noscratch.kernels.conv",
        "noscratch.model",
        "noscratch.train",
    )
    assert code.closure(("noscratch.alone",)) == ("noscratch.alone",)


def test_digest_moves_with_what_is_reached_only(package: Path) -> None:
    train, alone = code.digest(("noscratch.train",)), code.digest(("noscratch.alone",))
    (package / "kernels/conv.py").write_text("from . import E\nfrom ..errors import E as F\ny = 2  # new")
    code.forget()
    assert code.digest(("noscratch.train",)) != train
    assert code.digest(("noscratch.alone",)) == alone


def test_unknown_module_is_named(package: Path) -> None:
    with pytest.raises(NoscratchError, match=r"there is no noscratch\.nothing"):
        code.digest(("noscratch.nothing",))


@pytest.mark.parametrize(
    ("annotation", "good", "bad"),
    [
        ("int", [0, -3], ["1", 1.5, True, None]),
        ("float", [0, 1.5], ["1", True]),
        ("bool", [True], [0, "true"]),
        ("str | None", ["a", None], [1]),
        ('Literal["pre", "post"]', ["pre"], ["middle", 1]),
        ("tuple[int, ...]", ["anything"], []),
    ],
)
def test_values_are_held_against_annotations(annotation: str, good: list[object], bad: list[object]) -> None:
    parsed = ast.parse(annotation, mode="eval").body
    assert all(code.fits(value, parsed) for value in good)
    assert not any(code.fits(value, parsed) for value in bad)


def test_static_reading_agrees_with_import() -> None:
    from dataclasses import fields

    from noscratch import backbones, tasks

    for name in code.names_in("noscratch.tasks"):
        module = tasks.load(name)
        assert tuple(code.config_fields(f"noscratch.tasks.{name}")) == tuple(f.name for f in fields(module.Config))
        assert code.spec_literal(f"noscratch.tasks.{name}", "sources") == module.SPEC.sources
    for name in code.names_in("noscratch.backbones"):
        path, backbone = f"noscratch.backbones.{name}", backbones.load(name)
        assert tuple(code.config_fields(path)) == tuple(field.name for field in fields(backbone.Config))
        assert code.constant(path, "CAUSAL_OK") == backbone.CAUSAL_OK


def test_a_constant_that_is_not_there_is_named() -> None:
    with pytest.raises(NoscratchError, match=r"noscratch\.train gives CAUSAL_OK as a literal"):
        code.constant("noscratch.train", "CAUSAL_OK")
