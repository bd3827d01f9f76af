"""What the program sets before torch is loaded."""

import pytest

from strata.scripts import start


@pytest.fixture(autouse=True)
def no_settings(monkeypatch):
    for name in start.ALLOCATOR_SETTINGS:
        monkeypatch.delenv(name, raising=False)
        # Whatever the test sets goes away again.
        monkeypatch.setitem(start.os.environ, name, "")
        del start.os.environ[name]


def test_device_memory_grows_in_place_by_either_name():
    start.let_device_memory_grow()
    assert [start.os.environ[name] for name in start.ALLOCATOR_SETTINGS] == ["expandable_segments:True"] * 2


@pytest.mark.parametrize("name", start.ALLOCATOR_SETTINGS)
def test_settings_of_the_users_own_stay(name, monkeypatch):
    monkeypatch.setenv(name, "max_split_size_mb:64")
    start.let_device_memory_grow()
    assert [start.os.environ.get(one) for one in start.ALLOCATOR_SETTINGS if one != name] == [None]
    assert start.os.environ[name] == "max_split_size_mb:64"
