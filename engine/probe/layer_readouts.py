"""Readouts after every layer of a decoder, of all questions, in one sweep. Knows no probes.

Data flow: questions -> prompts of a head that needs no trained weight -> the sweep, whose tap hands on the
scored rows of each layer, normed as a head there would have them -> [layers, n, D] float32.
Peak host memory: that array, beside what the sweep takes. Independent check: transformers' hidden states
(tests/engine/probe/test_probe.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from strata.engine.adapters.labels import read_labels
from strata.engine.heads.classifier import Binary
from strata.engine.heads.classify import Classify
from strata.engine.heads.head import Head, ReadingCosts
from strata.engine.jobs.decoder_members import DecoderMembers
from strata.engine.jobs.job import Session
from strata.engine.jobs.open_decoder import open_decoder_members
from strata.engine.members.member import Member
from strata.engine.plan.overrides import GroupGoal
from strata.engine.probe.config import ProbeConfig
from strata.engine.progress import progress_bar
from strata.engine.prompts.templates import load_template
from strata.engine.questions.question_file import read_questions
from strata.engine.questions.text_file import find_labels, read_texts
from strata.engine.sweep.sweep import run_sweep
from strata.engine.tree.targets import TargetTable
from strata.engine.types import InputError, Question
from strata.engine.weights.byte_sources import FileSource


class OptionReadout(Binary):
    """An option's last token, read without any trained weight."""

    def bytes_read(self, targets: TargetTable, costs: ReadingCosts, *, normalized: bool) -> int:
        """Nothing."""
        return 0


class TextReadout(Classify):
    """A text's last token, read without any trained weight."""

    def bytes_read(self, targets: TargetTable, costs: ReadingCosts, *, normalized: bool) -> int:
        """Nothing."""
        return 0


@dataclass(frozen=True, kw_only=True, eq=False)
class LayerReadouts:
    """What was read: `questions` [Q], and `states` [layers, n, D] float32, a question's rows after another's.

    A question has a row an option, a text one row.
    """

    questions: Sequence[Question]
    states: np.ndarray


def read_layers(config: ProbeConfig, session: Session) -> LayerReadouts:
    """Sweeps the questions once.

    Raises:
        InputError: a model, an adapter or a question file that cannot be used, or a question without answer.
    """
    labels = _label_names(config)
    questions = _read_answered(config, labels, session)
    members = _open(config, labels, session)
    try:
        prompts = members.render(questions, str(config.questions))
        job = members.prepare(prompts, GroupGoal())
        targets, num_layers = job.sweep.scored_tree.targets, members.model.checkpoint.num_layers
        width = members.model.checkpoint.config.hidden_size
        states = np.empty((num_layers, len(targets.scored), width), np.float32)

        def tap(layer: int, member: str, streams: np.ndarray, rows: torch.Tensor) -> None:
            states[layer, np.searchsorted(targets.scored, streams)] = rows.float().cpu().numpy()

        total = job.sweep.tree.num_tokens * num_layers
        with progress_bar("probe", total, shown=session.shows_progress) as advance:
            for _ in run_sweep(job.sweep, session.folder, advance, tap):
                pass
    finally:
        members.close()
    return LayerReadouts(questions=questions, states=states[:, targets.rows])


def _label_names(config: ProbeConfig) -> tuple[str, ...]:
    if config.task != "classify":
        return ()
    if config.labels is not None:
        return read_labels(config.labels)
    return find_labels(config.questions, limit=config.limit)


def _read_answered(config: ProbeConfig, labels: Sequence[str], session: Session) -> list[Question]:
    path, limit, warnings = config.questions, config.limit, session.warnings
    columns = {"context_column": config.context_column, "id_column": config.id_column}
    if config.task == "classify":
        questions = read_texts(path, labels, **columns, limit=limit, warnings=warnings)
    else:
        questions = read_questions(path, **columns, limit=limit, warnings=warnings)
    missing = next((question for question in questions if question.answer is None), None)
    if missing is not None:
        raise InputError(f"{path}, row {missing.row}: no answer; a probe is fitted on answered questions")
    if len(questions) < config.folds:
        raise InputError(f"--folds {config.folds}: {path} has {len(questions)} questions; expected as many")
    return questions


def _open(config: ProbeConfig, labels: tuple[str, ...], session: Session) -> DecoderMembers:
    """The model with a head that only reads; opened with one that fits every checkpoint."""
    member = Member(model=config.model, adapter=config.adapter, head="yes-no", max_tokens=config.max_tokens)
    if config.layers_norm == "no":
        member = replace(member, layers_norm=False)
    members = open_decoder_members([member], config.machine, session, FileSource())
    head: Head = TextReadout() if config.task == "classify" else OptionReadout()
    prompting = replace(members.prompting, template=load_template(config.template, head=head), head=head)
    return replace(members, head=head, prompting=prompting, labels=(labels,) if labels else ())
