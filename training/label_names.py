"""The labels that a run of task classify learns to give: named by a file, or found in the training set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from strata.engine.adapters.labels import read_labels
from strata.engine.questions.text_file import find_labels
from strata.engine.types import InputError
from strata.training.config import TrainConfig


def label_names(config: TrainConfig) -> tuple[str, ...]:
    """Names of the labels, in the order of the classifier's rows; empty for other tasks.

    Without --labels they are the distinct labels of --questions, sorted: as numbers where all are.

    Raises:
        InputError: --labels is broken, or the questions have fewer than two labels.
    """
    if config.task != "classify":
        return ()
    if config.labels is not None:
        names = read_labels(config.labels)
        where = f"--labels: {config.labels}"
    else:
        assert config.questions is not None
        names, where = find_labels(config.questions, limit=config.limit), str(config.questions)
    if len(names) < 2:
        raise InputError(f"{where}: {len(names)} label(s); expected two or more to tell apart")
    return names


def name_labels(model: Any, labels: Sequence[str]) -> None:
    """Tells a transformers model, and the config it is saved with, what its labels are called."""
    model.num_labels = len(labels)
    model.config.id2label = dict(enumerate(labels))
    model.config.label2id = {name: index for index, name in enumerate(labels)}
