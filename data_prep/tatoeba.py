"""python -m data_prep.tatoeba: everyday sentences, many of them with several translations (tatoeba.org).

A preset of data_prep.parallel for a folder with a file a split and columns such as `en` and `de`. It names no Hub data
set: the splits should be cut so that no sentence, and no translation of one, stands in two of them.
"""

from __future__ import annotations

from dataclasses import dataclass

from data_prep.parallel import ParallelConfig, command


@dataclass(frozen=True, kw_only=True)
class TatoebaConfig(ParallelConfig):
    """Tatoeba sentence pairs from a local folder."""

    source: str = ""
    """a local folder with a file a split"""
    out: str = "data/tatoeba-{src}-{tgt}"
    licence: str = "CC BY 2.0 FR, attribution to tatoeba.org"


if __name__ == "__main__":
    command(TatoebaConfig, "data_prep.tatoeba", "Prepare Tatoeba sentence pairs from a local folder (--source).")
