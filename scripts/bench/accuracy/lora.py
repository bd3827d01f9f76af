"""A LoRA of a real model on questions with retrieved contexts; MAP@3 on other questions before and after.

Every step is that of the command: index, search, pack, train, score; each is kept. `lora_map3_before` is the
base model's by log-likelihoods, with the same contexts, `lora_map3_kaggle200` the trained model's, and
`lora_average_map3_kaggle200` that of both as members: the mean of their probabilities.
`lora_map3_held_out` is the trained model's on training questions that it was not shown (`--valid-share`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from strata.engine.config import ScoreConfig
from strata.engine.json_files import read_json_object
from strata.engine.pack.config import PackConfig
from strata.engine.pack.pack import pack_checkpoint
from strata.engine.questions.metrics import map_at_k
from strata.engine.run.score import score_questions
from strata.retrieval.index.build import build_index
from strata.retrieval.index_config import IndexConfig
from strata.retrieval.search_config import SearchConfig
from strata.scripts.bench.accuracy.config import LoraBenchConfig
from strata.scripts.bench.record import RESULTS, append_result, asked_settings, print_environment, print_table
from strata.scripts.real_models import find_smollm2
from strata.scripts.search import run_search
from strata.scripts.train import run_train
from strata.training.config import TrainConfig

TRAINING_SET, TEST_SET = "stem1k", "kaggle200"
PASSAGES = "wiki_passages.jsonl"
PAGES = 3
"""Pages whose best sentences make a context."""


def run_lora_bench(config: LoraBenchConfig) -> int:
    """Does what is not done yet, prints a table and appends the figures. Returns the exit status."""
    print_environment()
    source = config.model or find_smollm2()
    model = config.folder / "model"
    if not model.is_dir():
        pack_checkpoint(PackConfig(model=source, format="bf16", out=model))
    find_contexts(config, model)
    before = score_test(config, model, config.folder / "before", head="loglik")
    adapter = train_adapter(config, model)
    after = score_test(config, model, config.folder / "after", adapter=(adapter,))
    average = average_map_at_3([config.folder / "before", config.folder / "after"])
    rows = {
        "before (log-likelihoods)": before["map_at_3"],
        f"after ({config.task})": after["map_at_3"],
        "both, averaged": average,
        "longest option": after["heuristics"]["longest_option_map_at_3"],
        "uniform guess": after["heuristics"]["uniform_map_at_3"],
    }
    print_table([{"way": name, f"MAP@3 {TEST_SET}": value} for name, value in rows.items()])
    figures = {
        "lora_map3_before": before["map_at_3"],
        f"lora_map3_{TEST_SET}": after["map_at_3"],
        f"lora_average_map3_{TEST_SET}": average,
        "lora_accuracy_before": before["accuracy"],
        f"lora_accuracy_{TEST_SET}": after["accuracy"],
        f"map3_longest_{TEST_SET}": after["heuristics"]["longest_option_map_at_3"],
        f"map3_uniform_{TEST_SET}": after["heuristics"]["uniform_map_at_3"],
        **({"lora_map3_held_out": held_out_map_at_3(adapter.parent)} if config.valid_share else {}),
    }
    asked = asked_settings(config) | {"model": source.stem, "adapter": config.adapter is not None}
    append_result("lora", {"config": asked, **figures}, RESULTS)
    return 0


def find_contexts(config: LoraBenchConfig, model: Path) -> None:
    """Leaves both question files with the best sentences of the passages."""
    index = config.folder / "index"
    for name in (TRAINING_SET, TEST_SET):
        out = config.folder / f"{name}.csv"
        if out.is_file():
            continue
        if not index.is_dir():
            build_index(IndexConfig(corpus=(config.data / PASSAGES,), out=index))
        run_search(
            SearchConfig(
                index=index,
                questions=config.data / f"{name}.csv",
                out=out,
                tokenizer=model,
                pages=PAGES,
                context_tokens=config.context_tokens,
            )
        )


def train_adapter(config: LoraBenchConfig, model: Path) -> Path:
    """Trains, or goes on with an interrupted training; returns the adapter's folder."""
    out = config.folder / config.task
    asked = TrainConfig(
        model=model,
        out=out,
        questions=config.folder / f"{TRAINING_SET}.csv",
        task=config.task,
        adapter=config.adapter,
        max_steps=config.max_steps,
        batch_questions=config.batch_questions,
        learning_rate=config.learning_rate,
        head_lr_scale=1.0,
        lora_r=config.lora_r,
        lora_alpha=2.0 * config.lora_r,
        lora_dropout=0.0,
        lora_targets=config.lora_targets,
        layers=config.layers,
        valid_share=config.valid_share,
        eval_first=False,
        eval_every=0,
        dtype=config.dtype,
        seed=config.seed,
        save_every=20,
        resume=True,
        tensorboard="no",
    )
    if not (out / "adapter").is_dir():
        run_train(asked)
    return out / "adapter"


def held_out_map_at_3(trained: Path) -> float:
    """Of the training questions that were held out, when training ended."""
    return float(read_json_object(trained / "train.json")["metrics"]["map_at_3"])


def score_test(config: LoraBenchConfig, model: Path, out: Path, **flags: Any) -> dict[str, Any]:
    """Metrics of a run that is kept, gone on with, or begun."""
    record = out / "run.json"
    if record.is_file() and (found := read_json_object(record))["status"] == "done":
        return dict(found["metrics"])
    asked = ScoreConfig.from_flags(
        model=model,
        questions=config.folder / f"{TEST_SET}.csv",
        out=out,
        dtype=config.dtype,
        resume=True,
        **flags,
    )
    return dict(score_questions(asked).record["metrics"])


def average_map_at_3(runs: Sequence[Path]) -> float:
    """MAP@3 of the mean of kept runs' probabilities, over the questions with answers."""
    tables = [pq.read_table(run / "scores.parquet").to_pylist() for run in runs]
    orders, answers = [], []
    for rows in zip(*tables, strict=True):
        assert len({row["id"] for row in rows}) == 1, "the runs scored the same file"
        mean = np.mean([row["probabilities"] for row in rows], axis=0)
        orders.append(np.argsort(-mean, kind="stable").tolist())
        answers.append(rows[0]["answer"])
    return map_at_k(orders, answers)
