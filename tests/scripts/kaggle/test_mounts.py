"""Names of a pipeline, found in trees as Kaggle mounts them now and as it did before."""

from __future__ import annotations

import pytest

from strata.engine.types import InputError
from strata.scripts.kaggle.mounts import Mounts

TREE = (
    "datasets/me/mistral-7b/config.json",
    "datasets/me/mistral-7b/model.safetensors",
    "datasets/me/lora-a/adapter/adapter_config.json",
    "datasets/you/lora-b/adapter_config.json",
    "datasets/you/lora-b/notes/readme.md",
    "models/meta/llama-2/transformers/7b-hf/1/config.json",
    "models/meta/llama-2/transformers/13b-hf/1/config.json",
    "competitions/exam/test.csv",
    "old-flat/index/manifest.json",
    "old-flat/index/parts/0.bin",
    "old-flat/more.txt",
)


@pytest.fixture
def mounts(tmp_path) -> Mounts:
    for name in TREE:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return Mounts(tmp_path)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("/kaggle/input/datasets/me/mistral-7b", "datasets/me/mistral-7b"),
        ("/kaggle/input/mistral-7b", "datasets/me/mistral-7b"),
        ("models/mistral-7b", "datasets/me/mistral-7b"),
        # A folder that holds nothing but a folder stands for that.
        ("/kaggle/input/lora-a", "datasets/me/lora-a/adapter"),
        ("/kaggle/input/lora-b", "datasets/you/lora-b"),
        ("/kaggle/input/llama-2/transformers/7b-hf/1", "models/meta/llama-2/transformers/7b-hf/1"),
        (
            "/kaggle/input/models/meta/llama-2/transformers/13b-hf/1",
            "models/meta/llama-2/transformers/13b-hf/1",
        ),
        ("test.csv", "competitions/exam/test.csv"),
        ("/kaggle/input/old-flat/index", "old-flat/index"),
        ("../old-flat/more.txt", "old-flat/more.txt"),
    ],
)
def test_what_a_name_means(mounts, tmp_path, name, found):
    assert mounts.find(name) == tmp_path / found


def test_what_is_not_mounted(mounts):
    with pytest.raises(
        InputError, match=r"^wiki-index: not below .*; mounted there: .*datasets/me/mistral-7b"
    ):
        mounts.find("wiki-index")


def test_a_name_that_could_be_two(mounts):
    with pytest.raises(
        InputError, match=r"^1: could be models/meta/.* and models/meta/.*; expected a longer"
    ):
        mounts.find("1")
