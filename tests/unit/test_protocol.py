"""The measuring protocol."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.evaluate.protocol import SYSTEM_PROMPT, exact_match, normalise, prompt_messages


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The Eiffel Tower.", "eiffel tower"),
        ("  a   an the ", ""),
        ("Côte d’Ivoire", "côte d ivoire"),
        ("1,000", "1 000"),
        ("Theatre", "theatre"),
    ],
)
def test_normalise(text: str, expected: str) -> None:
    assert normalise(text) == expected


@given(st.text())
def test_normalising_twice_changes_nothing(text: str) -> None:
    assert normalise(normalise(text)) == normalise(text)


def test_exact_match_is_of_the_whole_string() -> None:
    assert exact_match("The euro!", ["dollar", "Euro"])
    assert not exact_match("the euro, I think", ["euro"])
    assert not exact_match("euro", [])


def test_the_prompt_is_one_system_message_and_the_question() -> None:
    assert prompt_messages("Who?") == [
        {"role": "system", "content": SYSTEM_PROMPT},
        {"role": "user", "content": "Who?"},
    ]
