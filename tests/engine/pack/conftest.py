"""Owns the checkpoints that these tests pack, whole and interrupted."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
import transformers as hf

from strata.engine.pack import pack as pack_module
from strata.engine.pack.config import PackConfig
from strata.engine.pack.pack import pack_checkpoint

from ...families import SHAPE, build_tokenizer, randomize_weights
from .interrupted_packs import NUM_FILES, SHARD_GIB, changed, contents
from .packed_weights import Pack


@pytest.fixture
def pack(tmp_path) -> Pack:
    """`pack(model, format, **settings)` -> the folder it leaves."""

    def run(model: Path, kind: str, **settings) -> Path:
        out = tmp_path / f"packed{len(list(tmp_path.iterdir()))}"
        pack_checkpoint(PackConfig(model=model, format=kind, out=out, **settings))
        assert not out.with_name(out.name + ".partial").exists()
        return out

    return run


@pytest.fixture
def wide(tmp_path) -> Path:
    """A Qwen 2, which has biases, in bfloat16 and several shards; k and v are too narrow to be packed."""
    config = hf.Qwen2Config(
        **SHAPE | {"hidden_size": 64, "intermediate_size": 192, "num_attention_heads": 16}
    )
    model = hf.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    randomize_weights(model)
    model.to(torch.bfloat16).save_pretrained(tmp_path / "wide", max_shard_size="64KB")
    build_tokenizer().save_pretrained(tmp_path / "wide")
    return tmp_path / "wide"


@pytest.fixture
def config(checkpoint, tmp_path) -> PackConfig:
    model = shutil.copytree(checkpoint("qwen2"), tmp_path / "model")
    return PackConfig(model=model, format="nf4", out=tmp_path / "out", shard_gib=SHARD_GIB)


@pytest.fixture
def whole(config) -> dict[str, str]:
    """What an uninterrupted pack leaves."""
    out = config.out.with_name("whole")
    pack_checkpoint(changed(config, out=out))
    assert len(list(out.glob("*.safetensors"))) == NUM_FILES
    return contents(out)


@pytest.fixture
def missing(monkeypatch) -> list[int]:
    """What each pack found that it still has to write."""
    found: list[int] = []
    missing_bytes = pack_module.missing_bytes

    def spy(partial, plan):
        found.append(missing_bytes(partial, plan))
        return found[-1]

    monkeypatch.setattr(pack_module, "missing_bytes", spy)
    return found
