"""The scoring scripts as the tests load them."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent
CODE = ROOT / "code"
NAMES = ["score-by-file", "score-by-batch"]
SHARED = ["classifier", "signature", "photo"]  # modules that stand in both folders


def load(name: str, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A fresh copy of the scoring script, and of the modules beside it, after init(), in this environment."""
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    monkeypatch.syspath_prepend(CODE / name)
    for module in (*SHARED, "parquet"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    spec = importlib.util.spec_from_file_location("batch_driver", CODE / name / "batch_driver.py")
    script = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "batch_driver", script)
    spec.loader.exec_module(script)
    script.init()
    return script
