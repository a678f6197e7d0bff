"""What the package's files say, read as syntax trees and never imported: digests for addresses, fields of a Config.

A digest covers every function of the package that a job can reach: it follows imports (also those inside functions)
from the modules that the job names. It drops comments, docstrings, positions and empty fields, so that reformatting a
file changes nothing and every Python from 3.11 on gives the same digest. `import noscratch.a.b` counts b.py alone:
packages do no work on import here.
"""

from __future__ import annotations

import ast
import hashlib
from functools import cache
from pathlib import Path

from noscratch.errors import NoscratchError

PACKAGE = Path(__file__).parent


def path_of(module: str) -> Path | None:
    """The file of a module of this package, or None when there is no such module."""
    inside = PACKAGE.joinpath(*module.split(".")[1:])
    for candidate in (inside.with_suffix(".py"), inside / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None


def names_in(package: str) -> tuple[str, ...]:
    """The modules of a package that carry a name (no leading underscore), sorted: its backbones or its tasks."""
    folder = PACKAGE.joinpath(*package.split(".")[1:])
    return tuple(sorted(path.stem for path in folder.glob("*.py") if not path.stem.startswith("_")))


@cache
def _tree(module: str) -> ast.Module:
    path = path_of(module)
    if path is None:
        raise NoscratchError(
            f"Every module that a job names is a file of the package; there is no {module}. Check its name in "
            f"params.yaml."
        )
    return ast.parse(path.read_text(encoding="utf-8"), filename=path.name)


@cache
def imports(module: str) -> frozenset[str]:
    """The modules of this package that `module` imports anywhere in its file."""
    path = path_of(module)
    package = module if path is not None and path.name == "__init__.py" else module.rpartition(".")[0]
    found = set()
    for node in ast.walk(_tree(module)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parent = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parent, base] if base else parent)
            for alias in node.names:
                inside = f"{base}.{alias.name}"
                found.add(inside if base.startswith("noscratch") and path_of(inside) else base)
    return frozenset(name for name in found if name.split(".")[0] == "noscratch" and path_of(name)) - {module}


def closure(modules: tuple[str, ...]) -> tuple[str, ...]:
    """The named modules and all that they import, directly or not, sorted."""
    seen: set[str] = set()
    waiting = list(modules)
    while waiting:
        module = waiting.pop()
        if module not in seen:
            seen.add(module)
            waiting.extend(imports(module))
    return tuple(sorted(seen))


def canonical(node: object) -> str:
    """A syntax tree as text without positions, docstrings and fields that are empty or differ between Python
    versions."""
    if isinstance(node, list):
        return "[" + ",".join(canonical(item) for item in node) + "]"
    if not isinstance(node, ast.AST):
        return f"{type(node).__name__}:{node!r}"
    parts = []
    for field, value in ast.iter_fields(node):
        if field in ("kind", "type_comment", "type_ignores") or value is None or value == []:
            continue
        if field == "body" and isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = value[0]
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                value = value[1:]
        if isinstance(node, ast.JoinedStr):
            # Python 3.12.1 puts an empty piece behind a nested format; others do not.
            value = [piece for piece in value if not (isinstance(piece, ast.Constant) and piece.value == "")]
        parts.append(f"{field}={canonical(value)}")
    return f"{type(node).__name__}({','.join(parts)})"


@cache
def _module_digest(module: str) -> bytes:
    return hashlib.sha256(canonical(_tree(module)).encode()).digest()


@cache
def digest(modules: tuple[str, ...]) -> str:
    """sha256 over the code that the named modules reach."""
    total = hashlib.sha256()
    for module in closure(modules):
        total.update(module.encode() + b"\0" + _module_digest(module))
    return total.hexdigest()


@cache
def config_fields(module: str) -> dict[str, ast.expr]:
    """Fields of the module's `Config` and their annotations, inherited ones first: what params.yaml may set."""
    fields = _class_fields(module, "Config")
    if fields is None:
        raise NoscratchError(f"Every task and backbone defines a frozen dataclass Config; {module} has none. Add it.")
    return fields


def _class_fields(module: str, name: str) -> dict[str, ast.expr] | None:
    """Annotated names in the body of a class of `module`, or of the module that it is imported from."""
    for node in _tree(module).body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            fields: dict[str, ast.expr] = {}
            for base in node.bases:
                fields |= _class_fields(*_place_of(module, base)) or {}
            for item in node.body:
                if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
                    fields[item.target.id] = item.annotation
            return fields
        if isinstance(node, ast.ImportFrom) and node.module and any(alias.name == name for alias in node.names):
            return _class_fields(node.module, name)
    return None


PLAIN: dict[str, tuple[type, ...]] = {"int": (int,), "float": (int, float), "str": (str,), "bool": (bool,)}


def fits(value: object, annotation: ast.expr) -> bool:
    """Does a plain value fit an annotation made of int, float, str, bool, None, `|` and Literal? True for any other."""
    if isinstance(annotation, ast.BinOp):
        return fits(value, annotation.left) or fits(value, annotation.right)
    if isinstance(annotation, ast.Constant) and annotation.value is None:
        return value is None
    if isinstance(annotation, ast.Subscript) and ast.unparse(annotation.value) == "Literal":
        return value in [ast.literal_eval(item) for item in getattr(annotation.slice, "elts", [annotation.slice])]
    wanted = PLAIN.get(ast.unparse(annotation))
    if wanted is None:
        return True
    return isinstance(value, wanted) and (bool in wanted or not isinstance(value, bool))


def _place_of(module: str, base: ast.expr) -> tuple[str, str]:
    """Module and name of a base class, written as `Name` or as `imported_module.Name`."""
    if isinstance(base, ast.Attribute) and isinstance(base.value, ast.Name):
        suffix = f".{base.value.id}"
        return next((found for found in imports(module) if found.endswith(suffix)), module), base.attr
    return module, base.id if isinstance(base, ast.Name) else ""


@cache
def words(module: str, suffix: str) -> frozenset[str]:
    """The texts in what the module gives, at its top level, to names that end so, such as the backends of kernels."""
    return frozenset(
        part.value
        for node in _tree(module).body
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id.endswith(suffix) for t in node.targets)
        for part in ast.walk(node.value)
        if isinstance(part, ast.Constant) and isinstance(part.value, str)
    )


@cache
def spec_literal(module: str, field: str) -> object:
    """A literal keyword of the module's `SPEC = Spec(...)`, such as a task's `sources`."""
    for node in _tree(module).body:
        value = node.value if isinstance(node, ast.Assign | ast.AnnAssign) else None
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        if isinstance(value, ast.Call) and any(
            isinstance(target, ast.Name) and target.id == "SPEC" for target in targets
        ):
            for keyword in value.keywords:
                if keyword.arg == field:
                    return ast.literal_eval(keyword.value)
    raise NoscratchError(
        f"SPEC of {module} gives `{field}` as a literal keyword; it does not. Write it out in the call of Spec."
    )


@cache
def constant(module: str, name: str) -> object:
    """The literal that the module gives to `name` at its top level, such as a backbone's CAUSAL_OK."""
    for node in _tree(module).body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == name for t in node.targets):
            return ast.literal_eval(node.value)
    raise NoscratchError(f"{module} gives {name} as a literal at its top level; it does not. Write it out there.")


def forget() -> None:
    """Read every file anew, after the package's files changed under a running process."""
    for cached in (_tree, imports, _module_digest, digest, config_fields, spec_literal, constant, words):
        cached.cache_clear()
