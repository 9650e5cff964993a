"""The import contracts name every module: one that is added must be sorted in, or this fails."""

from __future__ import annotations

import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
CONTRACTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]


def modules(package: str) -> set[str]:
    found = (path for path in (ROOT / package).iterdir() if not path.name.startswith("_"))
    return {f"{package}.{path.stem}" for path in found if path.is_dir() or path.suffix == ".py"}


def contract(name: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = next(contract for contract in CONTRACTS if contract["name"] == name)
    return found


def test_every_module_is_in_the_contracts() -> None:
    foundations = contract("metrics, losses and experiment import nothing of ours but each other, downwards")
    named = set(foundations["source_modules"]) | set(foundations["forbidden_modules"])
    assert modules("nmt_ls") <= named
    embedded = contract("the packages import from data_prep only the embedded corpora")["forbidden_modules"]
    assert modules("data_prep") - {"data_prep.grammar", "data_prep.shapes"} == set(embedded)


def test_vision_is_kept_from_all_of_nmt_ls_but_its_foundations() -> None:
    vision = contract(
        "vision_ls takes from nmt_ls only metrics, losses and experiment, and from data_prep only the shapes"
    )
    foundations = contract("metrics, losses and experiment import nothing of ours but each other, downwards")
    assert modules("nmt_ls") - set(vision["forbidden_modules"]) == set(foundations["source_modules"])
