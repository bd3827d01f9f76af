"""Jobs of random tokens on checkpoints of random weights: built, planned and run as `strata score` would.

A synthetic question looks as the yes-no head sees one: a prefix, a few options, two label tokens after each.
Knows no baselines and no rooflines.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from strata.engine.config import ScoreConfig
from strata.engine.model.vocabulary import TargetTokens, target_logits, vocabulary_projection
from strata.engine.plan.shapes import ModelShape
from strata.engine.plan.sweep_job import SweepJob, plan_job
from strata.engine.sweep.sweep import SweepResult, run_sweep
from strata.engine.tree.prefix_tree import PrefixTree, build_prefix_tree
from strata.engine.tree.targets import TargetTable, build_target_table
from strata.engine.types import Branch, Prompt, Question, Target
from strata.engine.weights.byte_sources import ByteSource
from strata.engine.weights.checkpoint import open_checkpoint
from strata.engine.weights.checkpoint_folder import weight_files
from strata.engine.weights.tensor_reader import TensorReader
from strata.scripts.bench.record import Stopwatch
from strata.scripts.bench.roofline import drop_page_cache
from strata.scripts.bench.shapes import useful_flops
from strata.scripts.bench.workloads.baselines import SyntheticQuestion, synthetic_questions

LABEL_TOKENS = (3, 4)


@dataclass(frozen=True, kw_only=True, eq=False)
class SyntheticJob:
    """Questions of one size with their prefix tree; `flops` are the useful ones of one question."""

    questions: list[SyntheticQuestion]
    prompts: list[Prompt]
    tree: PrefixTree
    targets: TargetTable
    flops: int


@dataclass(frozen=True, kw_only=True, eq=False)
class JobRun:
    """One run: seconds of sweep and head, the sweep's own account, label differences [Q, O]."""

    seconds: float
    swept: SweepResult
    scores: np.ndarray


def make_job(
    shape: ModelShape, num_questions: int, *, prefix_tokens: int, option_tokens: int, num_options: int
) -> SyntheticJob:
    """Questions for a model of a shape."""
    size = {"prefix_tokens": prefix_tokens, "option_tokens": option_tokens, "num_options": num_options}
    questions = synthetic_questions(num_questions, vocab_size=shape.vocab_size, **size)
    prompts = [as_prompt(index, question) for index, question in enumerate(questions)]
    tree = build_prefix_tree([branch.token_ids for prompt in prompts for branch in prompt.branches])
    return SyntheticJob(
        questions=questions,
        prompts=prompts,
        tree=tree,
        targets=build_target_table(prompts, tree),
        flops=useful_flops(shape, scored_tokens=num_options, **size),
    )


def plan_synthetic(job: SyntheticJob, checkpoint: Path, folder: Path, **settings: object) -> SweepJob:
    """The sweep of a job on a checkpoint; settings are those of `strata score`."""
    defaults: dict = {"model": checkpoint, "questions": checkpoint, "out": folder}
    config = ScoreConfig(**(defaults | settings))
    opened = open_checkpoint(checkpoint)
    return plan_job(config, "yes-no", opened, (), job.prompts, job.tree, job.targets).sweep


def run_synthetic(
    job: SyntheticJob, sweep: SweepJob, folder: Path, source: ByteSource | None = None, *, cold: bool = False
) -> JobRun:
    """Runs a planned job.

    Args:
        job: the questions.
        sweep: their planned sweep.
        folder: for a hidden store on disk.
        source: where bytes come from; the files themselves when absent.
        cold: drop the checkpoint's pages from memory first.
    """
    if cold:
        drop_page_cache([sweep.checkpoint.path])
    device = torch.device(sweep.plan.devices[0])
    with closing(TensorReader(source)) as reader, Stopwatch(device) as watch:
        swept = run_sweep(sweep, reader, folder)
        logits = target_logits(
            vocabulary_projection(sweep.checkpoint),
            swept.readouts[sweep.members[0]],
            TargetTokens(rows=job.targets.rows, token_ids=job.targets.token_ids, normalized=False),
            reader,
            device,
        )
    scores = (logits[0::2] - logits[1::2]).reshape(len(job.questions), -1)
    return JobRun(seconds=watch.seconds, swept=swept, scores=scores)


def as_prompt(index: int, question: SyntheticQuestion) -> Prompt:
    """A synthetic question as the yes-no head sees it: two label tokens after each option."""
    branches = []
    for option, option_ids in enumerate(question.option_ids):
        token_ids = np.concatenate([question.prefix_ids, option_ids]).astype(np.int32)
        branches += [
            Branch(
                option=option,
                order=(),
                label=str(label),
                token_ids=token_ids,
                text="",
                targets=(Target(position=len(token_ids), token_id=label),),
            )
            for label in LABEL_TOKENS
        ]
    options = tuple(str(option) for option in range(len(question.option_ids)))
    return Prompt(question=Question(id=str(index), prompt="", options=options), branches=tuple(branches))


def checkpoint_bytes(checkpoint: Path) -> int:
    """Bytes of a checkpoint's weights on disk."""
    return sum(file.stat().st_size for file in weight_files(checkpoint))
