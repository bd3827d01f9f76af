"""What members are called: an adapter's folder, or as much of its path as tells it apart."""

from __future__ import annotations

from pathlib import Path

import pytest

from strata.engine.members.member import Member, group_members
from strata.engine.types import InputError


@pytest.fixture
def named(tmp_path):
    """`named("r1/adapter", ...)` -> what members with these adapters are called; folders are made."""

    def names(*adapters: str) -> list[str]:
        for adapter in adapters:
            if not (tmp_path / adapter).exists():
                (tmp_path / adapter).mkdir(parents=True)
        members = [Member(model=Path("model"), adapter=tmp_path / adapter) for adapter in adapters]
        return [member.name for group in group_members(members) for member in group]

    return names


def test_folders_of_different_names_are_called_so(named):
    assert named("r1/one", "r2/two") == ["one", "two"]


def test_train_two_runs(named):
    assert named("r1/adapter", "r2/adapter", "other") == ["r1/adapter", "r2/adapter", "other"]
    assert named("x/r1/fold/adapter", "y/r1/fold/adapter") == ["x/r1/fold/adapter", "y/r1/fold/adapter"]


def test_symlinks_tell_apart(named, tmp_path):
    named("r1/adapter", "r2/adapter")
    (tmp_path / "first").symlink_to(tmp_path / "r1" / "adapter")
    (tmp_path / "second").symlink_to(tmp_path / "r2" / "adapter")
    assert named("first", "second") == ["first", "second"]


def test_one_adapter_twice_is_refused(named, tmp_path):
    named("r1/adapter")
    (tmp_path / "link").symlink_to(tmp_path / "r1" / "adapter")
    for twice in (("r1/adapter", "r1/adapter"), ("r1/adapter", "link")):
        with pytest.raises(InputError, match=r"adapter and .* are one folder"):
            named(*twice)


def test_a_label_stays(tmp_path):
    labelled = Member(model=Path("model"), adapter=tmp_path / "r1" / "adapter", label="first")
    other = Member(model=Path("model"), adapter=tmp_path / "r2" / "adapter")
    assert [member.name for group in group_members([labelled, other]) for member in group] == [
        "first",
        "adapter",
    ]


@pytest.mark.parametrize("what", ["loglik", "stated_order", "by_place"])
def test_a_name_that_another_members_further_scores_have_is_refused(what):
    """Else the sums of `small` would stand in the place of the scores of `small_loglik`."""
    members = [Member(model=Path("model"), label=name, head="letters") for name in ("small", f"small_{what}")]
    with pytest.raises(InputError, match=rf"^member 'small_{what}': .* member 'small' .*; expected another"):
        group_members(members)
