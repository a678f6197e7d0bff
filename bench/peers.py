"""Layers of public repositories, loaded from checkouts given by path: read where they lie, never copied.

    state-spaces/s4   models/s4/s4.py, models/s4/s4d.py      S4, S4D; also DSS's kernel in its exp form
    ctlllll/SGConv    gconv_standalone.py                    SGConv
    jxiw/BiGS         BiGS/modeling_bigs.py                  BiGS

They need the packages einops and opt_einsum. What else they import, but these layers do not use, is stood in for by
empty modules, so that nothing of it need be installed.
"""

from __future__ import annotations

import contextlib
import importlib.machinery
import importlib.util
import io
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from torch import nn


class Peer(NamedTuple):
    """One file of a public repository."""

    repository: str
    file: str
    unused: dict[str, dict[str, Any]]
    """Modules that it imports for parts that are not measured, and the names that it takes from them."""


def _same(x: Any) -> Any:
    return x


def _no_documentation(*_: Any, **__: Any) -> Any:
    return _same


class _Base:
    pass


PEERS = {
    "s4": Peer("state-spaces/s4", "models/s4/s4.py", {"pytorch_lightning.utilities": {"rank_zero_only": _same}}),
    "s4d": Peer("state-spaces/s4", "models/s4/s4d.py", {"src.models.nn": {"DropoutNd": nn.Identity}}),
    "sgconv": Peer(
        "ctlllll/SGConv", "gconv_standalone.py", {"omegaconf": {"DictConfig": _Base}, "IPython": {"embed": _same}}
    ),
    "bigs": Peer(
        "jxiw/BiGS",
        "BiGS/modeling_bigs.py",
        {
            "transformers": {},
            "transformers.activations": {"ACT2FN": {}},
            "transformers.configuration_utils": {"PretrainedConfig": _Base},
            "transformers.modeling_outputs": dict.fromkeys(
                (
                    "BaseModelOutputWithNoAttention",
                    "BaseModelOutputWithPooling",
                    "MaskedLMOutput",
                    "MultipleChoiceModelOutput",
                    "QuestionAnsweringModelOutput",
                    "SequenceClassifierOutput",
                    "TokenClassifierOutput",
                ),
                _Base,
            ),
            "transformers.modeling_utils": {"PreTrainedModel": nn.Module, "SequenceSummary": nn.Module},
            "transformers.utils": {
                "add_code_sample_docstrings": _no_documentation,
                "add_start_docstrings": _no_documentation,
                "add_start_docstrings_to_model_forward": _no_documentation,
                "logging": type("logging", (), {"get_logger": staticmethod(_same)}),
            },
        },
    ),
}


def load(name: str, checkout: Path) -> ModuleType:
    """The module called `name` in PEERS, from a checkout of its repository."""
    file = checkout / PEERS[name].file
    package = f"peer_{name}"
    with _stood_in(PEERS[name].unused), quiet():
        folder = importlib.machinery.ModuleSpec(package, None, is_package=True)
        folder.submodule_search_locations = [str(file.parent)]
        sys.modules[package] = importlib.util.module_from_spec(folder)
        return importlib.import_module(f"{package}.{file.stem}")


def revision(checkout: Path) -> str:
    """The commit that is checked out; "" outside git."""
    command = ["git", "-C", str(checkout), "rev-parse", "HEAD"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    return found.stdout.strip() if found.returncode == 0 else ""


def quiet() -> contextlib.AbstractContextManager[Any]:
    """Peers print while they are imported and when they run first."""
    return contextlib.redirect_stdout(io.StringIO())


@contextlib.contextmanager
def _stood_in(modules: dict[str, dict[str, Any]]) -> Iterator[None]:
    added: dict[str, ModuleType] = {}
    for name, attributes in modules.items():
        parts = name.split(".")
        for depth in range(1, len(parts) + 1):
            path = ".".join(parts[:depth])
            added.setdefault(path, ModuleType(path)).__path__ = []
        for attribute, value in attributes.items():
            setattr(added[name], attribute, value)
    before = {name: sys.modules.get(name) for name in added}
    sys.modules.update(added)
    try:
        yield
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module
