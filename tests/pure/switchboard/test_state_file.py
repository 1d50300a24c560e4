"""The state file is whole or ignored."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.switchboard.messages import LeaseView, lease_json
from deployments.switchboard.state_file import SavedState, load_state, save_state


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


LEASE = {"model": "a", "owner": "me", "seconds": 60.0, "until": 4e9}
WHOLE = {"desired": "a", "epoch": 1, "session": "s", "lease": None, "tickets": []}


@pytest.mark.parametrize(
    "change",
    [
        {"lease": {"model": 1}},
        {"lease": 5},
        {"lease": LEASE | {"model": []}},
        {"lease": LEASE | {"until": 1e308}},
        {"lease": LEASE | {"until": math.nan}},
        {"tickets": 5},
        {"tickets": [5]},
        {"tickets": [{}]},
    ],
)
def test_garbage_in_a_part_is_no_state(tmp_path, change):
    path = tmp_path / "residency.json"
    path.write_text(json.dumps(WHOLE))
    assert load_state(path) == SavedState("a", 1, "s")
    path.write_text(json.dumps(WHOLE | change))
    assert load_state(path) is None
    assert [entry.name for entry in tmp_path.iterdir()] == ["residency.json.damaged"]


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


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2)
    ),
    max_leaves=4,
)


@given(
    where=st.sampled_from([(key,) for key in WHOLE] + [("lease", key) for key in LEASE]),
    garbage=JSON,
)
def test_loaded_state_has_the_right_types(tmp_path_factory, where, garbage):
    """Whatever stands in any place: the rest of the server can use what is loaded."""
    whole = WHOLE | {"lease": dict(LEASE)}
    inner = whole if len(where) == 1 else whole["lease"]
    inner[where[-1]] = garbage
    path = tmp_path_factory.mktemp("state") / "residency.json"
    path.write_text(json.dumps(whole))
    state = load_state(path)
    if state is None:
        assert not path.exists()
        return
    assert isinstance(state.desired, str | None)
    assert type(state.epoch) is int
    assert isinstance(state.session, str)
    assert all(isinstance(ticket["id"], str) for ticket in state.tickets)
    if state.lease:
        lease_json(state.lease)
        assert isinstance(state.lease.model, str)
        assert isinstance(state.lease.owner, str)
        assert math.isfinite(state.lease.seconds)
    save_state(path, state)
    assert load_state(path) == state
