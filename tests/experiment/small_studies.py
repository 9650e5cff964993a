"""What tests of studies share: commands that count and record, and a session of workers."""

from __future__ import annotations

import io
from pathlib import Path

from nmt_ls.experiment.study import Study
from nmt_ls.experiment.study_workers import Session, Workers

# counts how often it is run, in a file beside the cell's name
COUNT = "sh -c 'echo x >> count-{cell}'"
RECORD = """import json, pathlib, sys
folder = pathlib.Path(sys.argv[1]); folder.mkdir(parents=True, exist_ok=True)
(folder / "figures").mkdir(exist_ok=True); (folder / "figures" / (sys.argv[2] + ".txt")).write_text("a picture")
line = {"name": "value", "value": 2.0, "signature": {"alpha": 0.1}, "command": "record " + sys.argv[1]}
(folder / "records.jsonl").open("a").write(json.dumps(line) + "\\n")
"""


def work(study: Study, workers: int = 2, seconds: float | None = None) -> Session:
    return Workers(study, list(study.cells), workers=workers, seconds=seconds, stream=io.StringIO()).run()


def runs_of(name: str) -> int:
    file = Path(f"count-{name}")
    return len(file.read_text().split()) if file.exists() else 0
