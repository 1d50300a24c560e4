"""How much a pattern's repetitions come to, in one pass over it."""

import time

import pytest

from serve_app.validation.json_schema import num_repeated


@pytest.mark.parametrize(
    ("pattern", "num_pieces"),
    [
        ("", 0),
        ("abc", 3),
        ("[a-z]+", 1),
        ("[^]x]{3}", 3),
        (r"\d{4}-\d{2}-\d{2}", 10),
        ("a{1,20}", 20),
        ("a{20,}b", 21),
        ("(ab){10}c", 21),
        ("((a{1,30} ){1,30},){1,30}", 27_930),
        ("a{2}{3}", 6),
        ("{", 0),
        ("a{b", 2),
        ("((((", 0),
        ("))))", 4),
        ("(?:a|b|c){5}", 20),
        ("a{999999999}", 1_000_000),
    ],
)
def test_repetitions_are_written_out(pattern: str, num_pieces: int):
    assert num_repeated(pattern) == num_pieces


@pytest.mark.parametrize("piece", ["(", ")", "[", "{", "{1", "\\", "a{9}", "(a{9})", "[]"])
def test_a_long_pattern_is_read_once(piece: str):
    began = time.process_time()
    num_repeated(piece * 200_000)
    assert time.process_time() - began < 5
