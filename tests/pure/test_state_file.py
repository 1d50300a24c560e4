"""The state file is whole or ignored."""

import json

import pytest

from deployments.state_file import SavedState, load_state, save_state
from deployments.view import LeaseView


@pytest.mark.parametrize(
    "state",
    [
        SavedState(
            "qwen-14b", 7, "session-1", LeaseView("qwen-14b", "me", 60, 1.5), ({"id": "sw-1"},)
        ),
        SavedState(None, 0),
    ],
)
def test_saved_state_is_loaded_again(tmp_path, state):
    path = tmp_path / "run" / "residency.json"
    save_state(path, state)
    assert load_state(path) == state


def test_second_save_replaces_the_first_and_leaves_nothing_behind(tmp_path):
    path = tmp_path / "residency.json"
    save_state(path, SavedState("a", 1))
    save_state(path, SavedState("b", 2))
    assert load_state(path) == SavedState("b", 2)
    assert [entry.name for entry in tmp_path.iterdir()] == ["residency.json"]


def test_reader_of_the_old_file_never_sees_half_of_the_new_one(tmp_path):
    path = tmp_path / "residency.json"
    save_state(path, SavedState("a", 1))
    with path.open() as reader:
        save_state(path, SavedState("b", 2))
        assert json.load(reader)["desired"] == "a"


def test_save_that_fails_keeps_the_old_state(tmp_path):
    path = tmp_path / "residency.json"
    save_state(path, SavedState("a", 1))
    path.with_name("residency.json.tmp").mkdir()
    with pytest.raises(OSError, match="directory"):
        save_state(path, SavedState("b", 2))
    assert load_state(path) == SavedState("a", 1)


def test_no_file_is_no_state(tmp_path):
    assert load_state(tmp_path / "residency.json") is None


WHOLE = {"desired": "a", "epoch": 1, "session": "s", "lease": None, "tickets": []}


@pytest.mark.parametrize(
    "change",
    [{"lease": {"model": 1}}, {"lease": 5}, {"tickets": 5}, {"tickets": [5]}, {"tickets": [{}]}],
)
def test_garbage_in_a_part_is_no_state(tmp_path, change):
    path = tmp_path / "residency.json"
    path.write_text(json.dumps(WHOLE))
    assert load_state(path) == SavedState("a", 1, "s")
    path.write_text(json.dumps(WHOLE | change))
    assert load_state(path) is None


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe\x00",
        b"{",
        b'{"desired": "a", "epo',
        b"[]",
        b"null",
        b"7",
        b"[" * 100_000,
        b'{"desired": "a"}',
        b'{"epoch": 1}',
        b'{"desired": [], "epoch": 1}',
        b'{"desired": 5, "epoch": 1}',
        b'{"desired": "a", "epoch": "many"}',
        b'{"desired": "a", "epoch": Infinity}',
        b'{"desired": "a", "epoch": null}',
    ],
)
def test_garbage_is_no_state(tmp_path, content):
    path = tmp_path / "residency.json"
    path.write_bytes(content)
    assert load_state(path) is None
