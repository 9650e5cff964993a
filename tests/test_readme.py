"""The Python in README runs as it stands; what needs a trained run is tested elsewhere."""

import re
from pathlib import Path

import pytest

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
ALONE = [block for block in BLOCKS if "runs/" not in block]


@pytest.mark.parametrize("block", ALONE, ids=lambda block: re.search(r"from (\S+)", block)[1])
def test_passages_of_python_run(block: str, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, object] = {}
    exec(compile(block, "README.md", "exec"), names)
    if "seeds_needed" in names:
        assert capsys.readouterr().out.split()[-1] == "12"  # as its comment says


def test_there_are_such_passages() -> None:
    assert len(ALONE) >= 3
