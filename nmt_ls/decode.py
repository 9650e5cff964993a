"""python -m nmt_ls.decode: translate a split, a file or standard input with a trained run."""

from __future__ import annotations

import sys

from nmt_ls.decoding import DecodeConfig, decode
from nmt_ls.experiment.command_line import run_command

SHORT_NAMES = {
    "beam": "search.beam",
    "nbest": "search.nbest",
    "length_penalty": "search.length_penalty",
    "length_penalty_kind": "search.length_penalty_kind",
    "alternatives": "search.alternatives",
    "samples": "search.samples",
    "seed": "search.seed",
}


def main(config: DecodeConfig) -> None:
    decoded = decode(config)
    scores = decoded.scores
    if scores is not None:
        for name, score in scores.scores.items():
            print(f"{name} {score:.2f}  {scores.signatures[name]}", file=sys.stderr)
        print(f"length ratio {scores.length_ratio:.3f}, brevity penalty {scores.brevity_penalty:.3f}", file=sys.stderr)
    print(f"recipe: {decoded.signature}", file=sys.stderr)


if __name__ == "__main__":
    run_command(
        main,
        DecodeConfig,
        program="python -m nmt_ls.decode",
        description="Translate a split, a file or standard input with a trained run.",
        short_names=SHORT_NAMES,
    )
