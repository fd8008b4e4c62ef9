"""What was measured is kept on disk, whatever the disk does."""

import pytest

from graphrt.kept import Kept


@pytest.fixture
def kept(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return Kept("rates.json", "this machine", "1")


def test_what_is_put_is_found_by_the_next_process(kept, tmp_path):
    assert kept.get("speed") is None
    kept.put("speed", [[1.0, 2.5]])
    assert Kept("rates.json", "this machine", "1").get("speed") == [[1.0, 2.5]]
    assert Kept("rates.json", "another machine", "1").get("speed") is None
    assert kept.path == tmp_path / "graphrt" / "rates.json"


def test_values_of_other_machines_stay(kept):
    Kept("rates.json", "another machine", "1").put("speed", 1)
    kept.put("speed", 2)
    kept.put("width", 3)
    assert Kept("rates.json", "another machine", "1").get("speed") == 1
    assert (kept.get("speed"), kept.get("width")) == (2, 3)
    assert [path.name for path in kept.path.parent.iterdir()] == ["rates.json"]


def test_values_of_another_version_are_forgotten(kept):
    kept.put("speed", 1)
    newer = Kept("rates.json", "this machine", "2")
    assert newer.get("speed") is None
    newer.put("width", 2)
    assert (kept.get("speed"), newer.get("width"), newer.get("speed")) == (None, 2, None)


DAMAGED = ["", "{", "[1]", '{"this machine": 3}', "\x00\xff", '{"this machine": {"version": "1", "values": [1]}}']


@pytest.mark.parametrize("text", DAMAGED)
def test_a_damaged_file_holds_nothing_and_is_written_anew(kept, text):
    kept.path.parent.mkdir(parents=True)
    kept.path.write_bytes(text.encode("latin-1"))
    assert kept.get("speed") is None
    kept.put("speed", 4)
    assert kept.get("speed") == 4


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path, monkeypatch):
    (tmp_path / "graphrt").write_text("a file where the folder should be")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    kept = Kept("rates.json", "this machine", "1")
    kept.put("speed", 1)
    assert kept.get("speed") is None
