"""Shapes of well-known models, and jobs on them, for plans and benches without a checkpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import LlamaConfig

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from transformers import PreTrainedConfig

from strata.engine.machine.devices import DTYPES
from strata.engine.machine.profile import MachineProfile
from strata.engine.machine.rates import LinearKind
from strata.engine.plan.costs import ModelCosts
from strata.engine.plan.workload import SideBytes, TokenStream, Workload, measure_workload
from strata.engine.types import InputError
from strata.engine.weights.checkpoint_folder import CONFIG_FILE, read_config
from strata.engine.weights.stored_checkpoint import decoder_config

LABEL_ROWS = 2
"""Rows of the vocabulary projection that a job on a shape reads: yes and no."""


def read_shape(name: str) -> PreTrainedConfig:
    """The configuration of a shape by name, or of a config.json or its folder.

    Raises:
        InputError: there is none.
    """
    if name in SHAPES:
        return to_llama_config(SHAPES[name])
    path = Path(name)
    folder = path.parent if path.name == CONFIG_FILE else path
    if not (folder / CONFIG_FILE).is_file():
        known = ", ".join(SHAPES)
        raise InputError(
            f"--shape: {name!r} is unknown; expected one of {known}, or a folder with config.json"
        )
    return decoder_config(read_config(folder), folder / CONFIG_FILE)[0]


@dataclass(frozen=True, kw_only=True)
class JobSize:
    """Equal questions: how many, tokens of each (its options included), options, tokens of an option."""

    num_questions: int
    tokens: int
    options: int
    option_tokens: int


def shape_workload(size: JobSize, costs: ModelCosts, vocab_size: int) -> Workload:
    """The size of a job of equal questions; every token id of the vocabulary may occur."""
    num_questions = size.num_questions
    branch = np.arange(size.option_tokens, dtype=np.int32)
    prefix_tokens = size.tokens - size.options * size.option_tokens
    prefix = np.arange(prefix_tokens, dtype=np.int32)
    position_ids = np.concatenate([prefix, *[prefix_tokens + branch] * size.options])
    ends = prefix_tokens + size.option_tokens * np.arange(1, size.options + 1) - 1
    row_bytes = costs.hidden_size * costs.itemsize
    one = measure_workload(
        costs,
        TokenStream(token_ids=position_ids, position_ids=position_ids, scored=ends),
        SideBytes(norm=row_bytes, head=LABEL_ROWS * row_bytes, embedding_row=row_bytes),
        num_members=1,
    )
    return replace(
        one,
        num_tokens=one.num_tokens * num_questions,
        num_scored=one.num_scored * num_questions,
        distinct_tokens=min(vocab_size, one.num_tokens * num_questions),
        gemm_flops=one.gemm_flops * num_questions,
        attention_flops=one.attention_flops * num_questions,
    )


def linear_kinds(dtype: str, profile: MachineProfile) -> Sequence[LinearKind]:
    """The ways of computing that are asked for and known."""
    if dtype == "int8":
        return ("int8",)
    return ("dense", "int8") if dtype not in DTYPES and "int8" in profile.compute else ("dense",)


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """The sizes that decide what a Llama-style decoder costs; embedding and vocabulary head are not tied."""

    name: str
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    max_position: int

    def __post_init__(self) -> None:
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"{self.name}: num_heads {self.num_heads} must be a multiple of "
                f"num_kv_heads {self.num_kv_heads}"
            )


TINY = ModelShape(
    name="tiny",
    hidden_size=64,
    intermediate_size=176,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    vocab_size=256,
    max_position=512,
)


TINYLLAMA_1B = ModelShape(
    name="tinyllama-1.1b",
    hidden_size=2048,
    intermediate_size=5632,
    num_layers=22,
    num_heads=32,
    num_kv_heads=4,
    head_dim=64,
    vocab_size=32000,
    max_position=2048,
)


LLAMA2_7B = ModelShape(
    name="llama2-7b",
    hidden_size=4096,
    intermediate_size=11008,
    num_layers=32,
    num_heads=32,
    num_kv_heads=32,
    head_dim=128,
    vocab_size=32000,
    max_position=4096,
)


LLAMA2_13B = ModelShape(
    name="llama2-13b",
    hidden_size=5120,
    intermediate_size=13824,
    num_layers=40,
    num_heads=40,
    num_kv_heads=40,
    head_dim=128,
    vocab_size=32000,
    max_position=4096,
)


LLAMA2_70B = ModelShape(
    name="llama2-70b",
    hidden_size=8192,
    intermediate_size=28672,
    num_layers=80,
    num_heads=64,
    num_kv_heads=8,
    head_dim=128,
    vocab_size=32000,
    max_position=4096,
)


QWEN3_32B = ModelShape(
    name="qwen3-32b",
    hidden_size=5120,
    intermediate_size=25600,
    num_layers=64,
    num_heads=64,
    num_kv_heads=8,
    head_dim=128,
    vocab_size=151936,
    max_position=40960,
)
"""Its matrices; the norms of queries and keys, which a Llama does not have, cost next to nothing."""


SHAPES = {shape.name: shape for shape in (TINY, TINYLLAMA_1B, LLAMA2_7B, LLAMA2_13B, LLAMA2_70B, QWEN3_32B)}


def to_llama_config(shape: ModelShape) -> LlamaConfig:
    """The transformers configuration of a Llama model of this shape, with Llama 2's other settings."""
    from transformers import LlamaConfig

    return LlamaConfig(
        architectures=["LlamaForCausalLM"],
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_kv_heads,
        head_dim=shape.head_dim,
        max_position_embeddings=shape.max_position,
        rms_norm_eps=1e-5,
        tie_word_embeddings=False,
    )
