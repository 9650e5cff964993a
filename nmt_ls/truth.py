"""What is known exactly of the embedded corpus, and so bounds what any translator can reach on it."""

from __future__ import annotations

import math
from random import Random

from data_prep.grammar import Grammar
from nmt_ls.corpus import Corpus, Split
from nmt_ls.embedded import EMBEDDED_SOURCE, fingerprint
from nmt_ls.metrics.translation import translation_scores


def is_embedded(corpus: Corpus) -> bool:
    """Whether today's data_prep.grammar generated the corpus, so that its true distribution is known."""
    if corpus.manifest["source"] != EMBEDDED_SOURCE:
        return False
    return bool(corpus.manifest["recipe"]["settings"]["grammar"] == fingerprint())


def true_entropy(split: Split) -> float:
    """Mean −log p*(target | source) of the split's targets, nats a piece, end-of-sentence included.

    The NLL that a model equal to the truth would have on the same targets: segmentation is a function of the target,
    so log p* of the pieces and their end sums to log p* of the sentence.
    """
    grammar = Grammar()
    rows = range(len(split))
    total = math.fsum(grammar.true_log_prob(split.source_text(row), split.references(row)[0]) for row in rows)
    return -total / (int(split.target.lengths_N.sum()) + len(split))


def bleu_ceilings(split: Split, seed: int = 0) -> dict[str, float]:
    """BLEU of the most probable translation under the grammar, and of one drawn from it, against the references."""
    grammar, rng = Grammar(), Random(f"ceiling/{seed}")
    sources = [split.source_text(row) for row in range(len(split))]
    references = [split.references(row) for row in range(len(split))]
    likeliest = [" ".join(grammar.most_probable(source)[0]) for source in sources]
    drawn = [grammar.sample_target(source, rng) for source in sources]
    return {
        "bleu_most_probable": translation_scores(likeliest, references, ("bleu",)).bleu,
        "bleu_sample": translation_scores(drawn, references, ("bleu",)).bleu,
    }
