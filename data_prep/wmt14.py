"""python -m data_prep.wmt14: English-German news translation, 4.5 million training pairs (Bojar et al., 2014).

A preset of data_prep.parallel. Validation is newstest2013, test newstest2014.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from data_prep.parallel import ParallelConfig, command
from nmt_ls.staged_texts import FilterConfig
from nmt_ls.vocabulary import VocabularyConfig


@dataclass(frozen=True, kw_only=True)
class Wmt14Config(ParallelConfig):
    """WMT14, with the joint vocabulary of about 37,000 pieces of Vaswani et al. (2017, section 5.1)."""

    source: str = "wmt/wmt14"
    name: str = "de-en"
    out: str = "data/wmt14-{src}-{tgt}"
    licence: str = "no single licence; see statmt.org/wmt14 for the terms of each part"
    vocabulary: VocabularyConfig = field(
        # fewer characters than the crawled part holds: its rare ones are mostly other scripts
        default_factory=lambda: VocabularyConfig(size=37_000, sample=2_000_000, character_coverage=0.9995)
    )
    filters: FilterConfig = field(default_factory=lambda: FilterConfig(max_pieces=250, max_ratio=1.5, copies=True))
    # published figures count every line of newstest, and each has one reference
    group_references: bool = False


if __name__ == "__main__":
    command(Wmt14Config, "data_prep.wmt14", "Prepare WMT14 (English to German news).")
