"""What a run of task classify learns from: texts with labels, hard, soft or mixed, and weights of the labels.

Source of balanced weights: n / (L n_label), scikit-learn's class_weight="balanced"; n_label is a sum of
probabilities where labels are soft.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from strata.engine.questions.text_file import read_label_columns, read_texts
from strata.engine.types import InputError, Question, RunWarnings
from strata.training.config import TrainConfig
from strata.training.data.soft_labels import apply_temperature, mix_labels, read_soft_labels
from strata.training.data.training_set import LabeledQuestions, TrainingSet, hold_out_share
from strata.training.label_names import label_names


def read_text_set(config: TrainConfig, warnings: RunWarnings) -> TrainingSet:
    """Reads, checks and splits the texts of a run.

    Columns called like all the labels are soft labels, unless --soft-labels gives others; they are mixed with
    the column `label` by --soft-weight, and stand alone in a file without that.

    Raises:
        InputError: texts that cannot be learned from, naming file, row and column.
    """
    assert config.questions is not None
    names = label_names(config)
    texts = _read(config.questions, names, config, warnings, limit=config.limit)
    soft = _read_soft(texts, names, config)
    weight = 1.0 if soft and all(text.answer is None for text in texts) else config.soft_weight
    kept, valid = _split(texts, names, config, warnings)
    if not soft or weight < 1:
        _check_labeled(kept, config.questions)
    labels = mix_labels(kept, soft, weight)
    weights = balance(kept, labels, names) if config.class_weights == "balanced" else None
    train = LabeledQuestions(questions=kept, labels=labels, class_weights=weights)
    if valid is None:
        return TrainingSet(train=train)
    return TrainingSet(
        train=train, valid=LabeledQuestions(questions=valid, labels=mix_labels(valid, {}, 0.0))
    )


def balance(
    texts: Sequence[Question], labels: Sequence[np.ndarray], names: Sequence[str]
) -> dict[str, float]:
    """The weight of each label: texts / (labels x texts of this label); 0 for one that no text has."""
    mass = dict.fromkeys(names, 0.0)
    for text, shares in zip(texts, labels, strict=True):
        for name, share in zip(text.options, shares.tolist(), strict=True):
            mass[name] += share
    occurring = sum(total > 0 for total in mass.values())
    return {name: len(texts) / (occurring * total) if total else 0.0 for name, total in mass.items()}


def _read(
    path: Path, names: Sequence[str], config: TrainConfig, warnings: RunWarnings, *, limit: int | None
) -> list[Question]:
    columns = {"context_column": config.context_column, "id_column": config.id_column}
    return read_texts(path, names, **columns, limit=limit, warnings=warnings)


def _read_soft(
    texts: Sequence[Question], names: Sequence[str], config: TrainConfig
) -> Mapping[str, np.ndarray]:
    assert config.questions is not None
    if config.soft_labels is not None:
        return read_soft_labels(config.soft_labels, texts, temperature=config.soft_temperature)
    found = read_label_columns(config.questions, names, id_column=config.id_column, limit=config.limit)
    if found is None:
        return {}
    masked = next((text for text in texts if len(text.options) != len(names)), None)
    if masked is not None:
        raise InputError(
            f"{config.questions}, row {masked.row}: has options and columns of labels; expected one of both"
        )
    return {name: apply_temperature(shares, config.soft_temperature) for name, shares in found.items()}


def _split(
    texts: list[Question], names: Sequence[str], config: TrainConfig, warnings: RunWarnings
) -> tuple[list[Question], list[Question] | None]:
    if config.valid is not None:
        valid = _read(config.valid, names, config, warnings, limit=None)
        _check_labeled(valid, config.valid)
        return texts, valid
    if not config.valid_share:
        return texts, None
    assert config.questions is not None
    kept, valid = hold_out_share(texts, config, "text")
    _check_labeled(valid, config.questions)
    return kept, valid


def _check_labeled(texts: Sequence[Question], path: Path) -> None:
    missing = next((text for text in texts if text.answer is None), None)
    if missing is not None:
        raise InputError(f"{path}, row {missing.row}, column 'label': no label; expected one in every row")
