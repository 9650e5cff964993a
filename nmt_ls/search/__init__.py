"""Search: beam search, sampling, and teacher-forced rescoring over anything that gives next-token logits."""

from nmt_ls.search.beam import beam_search
from nmt_ls.search.config import SearchConfig, maximum_lengths
from nmt_ls.search.hypotheses import Found
from nmt_ls.search.length_penalty import length_penalty
from nmt_ls.search.rescoring import rescore
from nmt_ls.search.sampling import sample
from nmt_ls.search.shared_prefixes import PrefixStepper, beam_search_at, shareable
from nmt_ls.search.stepper import Stepper

__all__ = [
    "Found",
    "PrefixStepper",
    "SearchConfig",
    "Stepper",
    "beam_search",
    "beam_search_at",
    "length_penalty",
    "maximum_lengths",
    "rescore",
    "sample",
    "shareable",
]
