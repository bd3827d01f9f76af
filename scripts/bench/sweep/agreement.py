"""What int8 does to a trained model's answers, beside what bfloat16 does: the same questions in three dtypes.

`int8_rank_agreement` is int8's top-1 agreement with float32 over bfloat16's. Random weights cannot tell this:
their scores are all but ties.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Literal

from strata.engine.machine.settings import MachineSettings
from strata.engine.members.member import Member
from strata.engine.questions.question_file import read_questions
from strata.engine.run.int8_check import Agreement, compare_scores
from strata.engine.scorer import Scorer
from strata.engine.types import QuestionScores, RunWarnings
from strata.scripts.bench.configs import SweepBenchConfig
from strata.scripts.bench.record import print_table
from strata.scripts.bench.steps import BenchSteps
from strata.scripts.bench.sweep.core import UNKEPT

Head = Literal["yes-no", "letters", "loglik"]
Dtype = Literal["float32", "bfloat16", "int8"]
HEADS: tuple[Head, ...] = ("loglik", "yes-no", "letters")


def run_agreement_part(config: SweepBenchConfig, steps: BenchSteps = UNKEPT) -> dict[str, object]:
    """Top-1 agreement and margin errors of bfloat16 and int8 against float32, by head and over all heads."""
    if config.trained_model is None or config.trained_questions is None:
        print("agreement: left out, it needs --trained-model and --trained-questions")
        return {}
    found: dict[Dtype, list[QuestionScores]] = {"float32": [], "bfloat16": [], "int8": []}
    rows = []
    for head in HEADS:
        scored = {dtype: score_with(config, head, dtype) for dtype in found}
        steps.advance(1)
        for dtype, scores in scored.items():
            found[dtype] += scores
        rows += [row_of(head, dtype, compare_scores(scored[dtype], scored["float32"])) for dtype in scored]
    whole = {dtype: compare_scores(scores, found["float32"]) for dtype, scores in found.items()}
    rows += [row_of("all", dtype, agreement) for dtype, agreement in whole.items()]
    print_table(rows)
    return {
        "int8_top1_agreement": whole["int8"].top1_agreement,
        "bf16_top1_agreement": whole["bfloat16"].top1_agreement,
        "int8_rank_agreement": whole["int8"].top1_agreement / whole["bfloat16"].top1_agreement,
        "agreement_rows": rows,
        "agreement_model": config.trained_model.name,
    }


def row_of(head: str, dtype: str, agreement: Agreement) -> dict[str, object]:
    """One line of the table."""
    return {"head": head, "dtype": dtype, **asdict(agreement)}


def score_with(config: SweepBenchConfig, head: Head, dtype: Dtype) -> list[QuestionScores]:
    """The questions' scores in a dtype."""
    assert config.trained_model is not None
    assert config.trained_questions is not None
    questions = read_questions(config.trained_questions, warnings=RunWarnings())
    member = Member(model=config.trained_model, head=head)
    with Scorer.open([member], MachineSettings(dtype=dtype)) as scorer:
        return scorer.score(questions)
