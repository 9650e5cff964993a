from __future__ import annotations

import pytest
import torch

from nmt_ls.search import SearchConfig, maximum_lengths


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": 0.0}, "temperature"),
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"beam": 0}, "beam must be at least 1"),
        ({"beam": 4, "nbest": 5}, r"nbest must be from 1 to beam \(4\), got 5"),
        ({"nbest": 0}, "nbest"),
        ({"length_penalty_kind": "wu"}, "length_penalty_kind must be one of gnmt, average, none"),
        ({"length_penalty": float("inf")}, "length_penalty"),
        ({"min_length": 0}, "min_length counts the end-of-sentence"),
        ({"max_length_factor": -1.0}, "max_length_factor"),
        ({"max_length_factor": 0.0, "max_length_offset": 0}, "max_length_factor"),
        ({"stop": "never"}, "stop must be exact or early"),
        ({"no_repeat_ngram": -1}, "no_repeat_ngram must not be negative"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"top_k": -3}, "top_k"),
        ({"samples": -1}, "samples"),
    ],
)
def test_refuses_by_name(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SearchConfig(**settings)


def test_longest_translation_is_twice_the_pieces_and_ten() -> None:
    source = torch.tensor([[5, 6, 7, 2], [5, 2, 0, 0]])
    assert maximum_lengths(source, SearchConfig()).tolist() == [16, 12]
    assert maximum_lengths(source, SearchConfig(max_length_factor=1.5, max_length_offset=0)).tolist() == [4, 1]
    assert maximum_lengths(source, SearchConfig(min_length=14)).tolist() == [16, 14]


def test_a_stepper_is_as_wide_as_the_beam_or_the_samples() -> None:
    assert SearchConfig(beam=7).width == 7
    assert SearchConfig(beam=7, samples=3).width == 3
