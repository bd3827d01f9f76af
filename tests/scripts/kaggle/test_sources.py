"""What has to be mounted, told by a pipeline's paths."""

from __future__ import annotations

import pytest

from strata.engine.types import InputError
from strata.scripts.kaggle.config import KaggleSettings
from strata.scripts.kaggle.paths import change_paths, list_paths
from strata.scripts.kaggle.sources import find_sources

VALUES = {
    "retrieval": {
        "wiki": {"index": "/kaggle/input/wiki", "method": ["bm25"], "tokenizer": "/kaggle/input/m"}
    },
    "members": {
        "a": {"model": "/kaggle/input/datasets/you/big/model", "template": "letters", "context": "wiki"},
        "b": {"model": "/kaggle/input/models/meta/llama/transformers/7b/1/sub", "adapter": "lora"},
    },
    "fitted": "runs/fitted.json",
}


def settings(tmp_path, **more) -> KaggleSettings:
    return KaggleSettings(config=tmp_path / "p.yaml", owner="me", **more)


def test_which_values_are_paths():
    assert list_paths(VALUES) == [
        "/kaggle/input/datasets/you/big/model",
        "/kaggle/input/models/meta/llama/transformers/7b/1/sub",
        "lora",
        "/kaggle/input/wiki",
        "/kaggle/input/m",
        "runs/fitted.json",
    ]
    changed = change_paths(VALUES, str.upper)
    assert changed["members"]["b"] == {
        "model": "/KAGGLE/INPUT/MODELS/META/LLAMA/TRANSFORMERS/7B/1/SUB",
        "adapter": "LORA",
    }
    assert changed["members"]["a"]["template"] == "letters"
    assert changed["retrieval"]["wiki"]["method"] == ["bm25"]
    assert VALUES["members"]["b"]["adapter"] == "lora"


def test_data_sets_models_and_competitions(tmp_path):
    paths = [*list_paths(VALUES), "/kaggle/input/competitions/exam/extra.csv", "/kaggle/input/theirs/x"]
    found = find_sources(paths, settings(tmp_path, dataset=("they/theirs",), competition="exam"))
    assert found.datasets == ("they/theirs", "you/big", "me/lora", "me/wiki", "me/m", "me/fitted-json")
    assert found.models == ("meta/llama/transformers/7b/1",)
    assert found.competitions == ("exam",)
    assert found.unknown == ()


def test_a_model_whose_owner_is_not_told(tmp_path):
    path = "/kaggle/input/llama-2/pytorch/7b-hf/1"
    assert find_sources([path], settings(tmp_path)).unknown == (path,)
    named = settings(tmp_path, model=("meta/llama-2/pytorch/7b-hf/1",))
    assert find_sources([path], named).unknown == ()


def test_small_files_travel_along_and_folders_are_to_be_uploaded(tmp_path):
    (tmp_path / "Big Model").mkdir()
    (tmp_path / "template.yaml").touch()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "template.yaml").touch()
    paths = [str(tmp_path / "Big Model"), str(tmp_path / "template.yaml")]
    found = find_sources(paths, settings(tmp_path))
    assert found.bundled == (tmp_path / "template.yaml",)
    assert found.to_upload == ((tmp_path / "Big Model", "me/big-model"),)
    with pytest.raises(InputError, match="have one name"):
        find_sources([*paths, str(tmp_path / "other" / "template.yaml")], settings(tmp_path))


@pytest.mark.parametrize(
    ("more", "flag"),
    [
        ({"dataset": ("mine",)}, "--dataset"),
        ({"model": ("meta/llama",)}, "--model"),
        ({"name": "abc"}, "--name"),
        ({"name": "x" * 44}, "--name"),
        ({"name": "my run"}, "--name"),
        ({"deadline": "soon"}, "--deadline"),
        ({"commit_deadline": "0m"}, "--commit-deadline"),
    ],
)
def test_settings_that_mean_nothing(tmp_path, more, flag):
    with pytest.raises(InputError, match=f"^{flag}: "):
        settings(tmp_path, **more).check()
