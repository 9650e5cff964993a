"""The import contracts name every module: one that is added must be sorted in, or this fails."""

from __future__ import annotations

import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent


def modules(package: str) -> set[str]:
    found = (path for path in (ROOT / package).iterdir() if not path.name.startswith("_"))
    return {f"{package}.{path.stem}" for path in found if path.is_dir() or path.suffix == ".py"}


def test_every_module_is_in_the_contracts() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    by_name = {contract["name"]: contract for contract in contracts}
    foundations = by_name["metrics, losses and experiment import nothing of ours but each other, downwards"]
    named = set(foundations["source_modules"]) | set(foundations["forbidden_modules"])
    assert modules("nmt_ls") <= named
    embedded = by_name["the packages import from data_prep only the embedded corpora"]["forbidden_modules"]
    assert modules("data_prep") == {*embedded, "data_prep.grammar"}
