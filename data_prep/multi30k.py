"""python -m data_prep.multi30k: English image captions and their German translations (Elliott et al., 2016).

A preset of data_prep.parallel: 29,000 training pairs, of which 3 are duplicates; the test split is test_2016_flickr.
"""

from __future__ import annotations

from dataclasses import dataclass

from data_prep.parallel import ParallelConfig, command


@dataclass(frozen=True, kw_only=True)
class Multi30kConfig(ParallelConfig):
    """Multi30k, with the joint 10k BPE of the field."""

    source: str = "bentrevett/multi30k"
    out: str = "data/multi30k-{src}-{tgt}"
    licence: str = "for research; derived from Flickr30K, whose images are for non-commercial research and education"


if __name__ == "__main__":
    command(Multi30kConfig, "data_prep.multi30k", "Prepare Multi30k (English to German image captions).")
