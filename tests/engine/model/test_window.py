"""The window that contexts are cut to, for every kind of rotary scaling.

The independent check is what model cards and transformers' documentation say of published configs.
"""

from __future__ import annotations

import json
import shutil

import pytest
import transformers as hf

from strata.engine.model.window import model_window

from ...reference import read_prompts
from ...sample_questions import write_jsonl

LONG = [1.0] * 4


def llama(stated: int, **scaling) -> hf.PreTrainedConfig:
    rope = {"rope_theta": 10000.0} | (scaling or {"rope_type": "default"})
    return hf.LlamaConfig(
        hidden_size=32, num_attention_heads=4, max_position_embeddings=stated, rope_parameters=rope
    )


WINDOWS = {
    "none": (llama(4096), 4096),
    # LongChat and Vicuna 16k: 4,096 trained, scaled by 4.
    "linear": (llama(4096, rope_type="linear", factor=4.0), 16384),
    "dynamic": (llama(4096, rope_type="dynamic", factor=2.0), 8192),
    # Qwen2.5: 32,768 stated, 131,072 with yarn of factor 4.
    "yarn": (llama(32768, rope_type="yarn", factor=4.0, original_max_position_embeddings=32768), 131072),
    # DeepSeek-V3: stated scaled already.
    "yarn stated": (
        llama(163840, rope_type="yarn", factor=40.0, original_max_position_embeddings=4096),
        163840,
    ),
    # Llama 3.1: stated scaled already; 8 times 8,192 would be 65,536.
    "llama3": (
        llama(
            131072,
            rope_type="llama3",
            factor=8.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=8192,
        ),
        131072,
    ),
    # Phi-3: stated scaled already.
    "longrope": (
        llama(
            131072,
            rope_type="longrope",
            short_factor=LONG,
            long_factor=LONG,
            original_max_position_embeddings=4096,
        ),
        131072,
    ),
    # Gemma 3: full attention alone is scaled, and 131,072 stated.
    "by layer type": (
        hf.Gemma3TextConfig(
            max_position_embeddings=131072,
            rope_parameters={
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
        ),
        131072,
    ),
}


@pytest.mark.parametrize("kind", WINDOWS)
def test_window_by_kind(kind):
    config, expected = WINDOWS[kind]
    window = model_window(config)
    assert window.num_tokens == expected
    assert ("rotary scaling" in window.note) == (expected != config.max_position_embeddings)


@pytest.mark.parametrize(("scaling", "window"), [(None, 64), ({"rope_type": "linear", "factor": 4.0}, 256)])
def test_window_linear_scaling(scaling, window, checkpoint, score, tmp_path):
    """Contexts are cut at the scaled window, and the run says so."""
    folder = shutil.copytree(checkpoint("llama-gqa"), tmp_path / "scaled")
    config = json.loads((folder / "config.json").read_text())
    config |= {"max_position_embeddings": 64}
    if scaling is not None:
        config["rope_parameters"] |= scaling
    (folder / "config.json").write_text(json.dumps(config))
    row = {"id": "1", "question": "Why?", "options": ["the moon", "sand"], "context": "It is so. " * 500}
    asked = write_jsonl(tmp_path / "long.jsonl", [row])
    run = score(model=folder, head="loglik", questions=asked)
    lengths = [len(branch["ids"]) for line in read_prompts(run.out) for branch in line["branches"]]
    assert window - 8 < max(lengths) < window
    said = " ".join(run.record["warnings"]["messages"])
    assert ("rotary scaling" in said) == (scaling is not None)
