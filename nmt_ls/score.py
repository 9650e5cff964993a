"""python -m nmt_ls.score: what a run is worth on a split: likelihood, calibration and translation quality; or what
given probabilities are worth, or given translations beside a baseline's."""

from __future__ import annotations

from pathlib import Path

from nmt_ls.experiment.command_line import run_command
from nmt_ls.experiment.records import one_line
from nmt_ls.reporting import ScoreConfig, score
from nmt_ls.score_records import store

SHORT_NAMES = {
    "beam": "search.beam",
    "length_penalty": "search.length_penalty",
    "length_penalty_kind": "search.length_penalty_kind",
}


def main(config: ScoreConfig) -> None:
    scored = score(config)
    print(f"{scored.title}\n")
    print(scored.table)
    for group in scored.groups:
        for name, text in group.signatures.items():
            print(f"{name}: {text}")
    print(f"recipe: {one_line(scored.recipe)}")
    if config.results is not None:
        store(Path(config.results), scored.groups, scored.recipe, scored.diagrams, scored.sentences)


if __name__ == "__main__":
    run_command(
        main,
        ScoreConfig,
        program="python -m nmt_ls.score",
        description="Likelihood, calibration and translation quality of a run on a split; or figures of given files.",
        short_names=SHORT_NAMES,
    )
