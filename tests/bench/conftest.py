"""The bench's packages and scripts, without installing them."""

import importlib.machinery
import importlib.util
import sys
from pathlib import Path

BENCH = Path(__file__).resolve().parents[2] / "bench"

sys.dont_write_bytecode = True
sys.path.insert(0, str(BENCH))


def script(path: str):
    """A command of the bench as a module; its name has no suffix."""
    loader = importlib.machinery.SourceFileLoader(path.replace("/", "_"), str(BENCH / path))
    module = importlib.util.module_from_spec(
        importlib.util.spec_from_loader(loader.name, loader)
    )
    loader.exec_module(module)
    return module
