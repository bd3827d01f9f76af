"""Encoders and settings that are refused, each in one line that says what was expected."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import transformers as hf
from peft import LoraConfig, get_peft_model

from strata.engine.encoders.encoder import is_encoder
from strata.engine.run.score import ScoreRun
from strata.engine.types import InputError


def test_plain_encoder_is_refused_with_what_to_do(
    encoder: Callable[..., Path], score: Callable[..., ScoreRun], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"plain encoder.*classifier.*strata train --task multiple-choice"):
        score(encoder("bert", with_head=False), out=tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_adapter_without_the_head_is_refused(
    encoder: Callable[..., Path], score: Callable[..., ScoreRun], tmp_path: Path
) -> None:
    model = hf.AutoModelForMultipleChoice.from_pretrained(encoder("bert", with_head=False))
    get_peft_model(model, LoraConfig(target_modules=["query"])).save_pretrained(str(tmp_path / "bare"))
    with pytest.raises(InputError, match=r"--adapter: .*bare: holds no tensor for classifier"):
        score(encoder("bert", with_head=False), adapter=(tmp_path / "bare",))


def test_an_adapter_without_peft_names_the_extra(
    encoder: Callable[..., Path],
    score: Callable[..., ScoreRun],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = hf.AutoModelForMultipleChoice.from_pretrained(encoder("bert"))
    given = LoraConfig(target_modules=["query"], modules_to_save=["classifier"])
    get_peft_model(model, given).save_pretrained(str(tmp_path / "whole"))
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(InputError, match=r'expected pip install "strata-score\[adapters\]"$'):
        score(encoder("bert"), adapter=(tmp_path / "whole",))


@pytest.mark.parametrize(
    ("settings", "flag"),
    [
        ({"head": "letters"}, "--head letters"),
        ({"debias": "rotate"}, "--debias rotate"),
        ({"template": "letters"}, "--template letters"),
        ({"dtype": "int8"}, "--dtype int8"),
        ({"hidden_store": "disk"}, "--hidden-store"),
        ({"resident_layers": 1}, "--resident-layers"),
        ({"max_tokens": 3}, "--max-tokens 3"),
        ({"memory_gib": 1e-6}, "--memory-gib"),
        ({"devices": "cuda:99"}, "--devices"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_settings_without_a_meaning_are_refused(
    settings: dict, flag: str, encoder: Callable[..., Path], score: Callable[..., ScoreRun]
) -> None:
    with pytest.raises(InputError, match=flag):
        score(encoder("bert"), **settings)


def test_encoders_whose_scores_change_with_padding_are_refused(
    score: Callable[..., ScoreRun], tmp_path: Path
) -> None:
    hf.FNetConfig(architectures=["FNetForMultipleChoice"]).save_pretrained(tmp_path / "fnet")
    assert is_encoder(tmp_path / "fnet")
    with pytest.raises(InputError, match=r"'fnet', whose scores change with padding"):
        score(tmp_path / "fnet")


def test_decoders_are_no_encoders(checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    assert not is_encoder(checkpoint("llama-gqa"))
    assert not is_encoder(tmp_path)
