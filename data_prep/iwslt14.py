"""python -m data_prep.iwslt14: German-English talks, about 170,000 training pairs (Cettolo et al., 2014).

A preset of data_prep.parallel. The Hub's data set has a loading script, which `datasets` no longer runs: its Parquet
conversion is a branch of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from data_prep.parallel import ParallelConfig, command
from nmt_ls.staged_texts import FilterConfig


@dataclass(frozen=True, kw_only=True)
class Iwslt14Config(ParallelConfig):
    """IWSLT14, with the joint 10k BPE and the limits on length (175 pieces, ratio 1.5) that are usual with it."""

    source: str = "bbaaaa/iwslt14-de-en"
    name: str = "de-en"
    revision: str = "refs/convert/parquet"
    src: str = "de"
    tgt: str = "en"
    out: str = "data/iwslt14-{src}-{tgt}"
    licence: str = "CC BY-NC-ND 4.0 (TED talks)"
    filters: FilterConfig = field(default_factory=lambda: FilterConfig(max_pieces=175, max_ratio=1.5))
    # published figures count every line of the test set, and each has one reference
    group_references: bool = False


if __name__ == "__main__":
    command(Iwslt14Config, "data_prep.iwslt14", "Prepare IWSLT14 (German to English talks).")
