"""A soak: thousands of tiny questions, model after model opened and closed; what grows is a leak."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import psutil

from strata.engine.machine.settings import MachineSettings
from strata.engine.members.member import Member
from strata.engine.scorer import Scorer
from strata.engine.types import Question
from strata.scripts.demo import ADAPTER, MODEL

QUESTIONS_A_ROUND = 500
MIB = 2**20
SETTLED_AFTER = 0.25
"""Share of the rounds before which allocators and caches still fill up."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """What this process holds after so many questions."""

    num_questions: int
    resident_mib: float
    num_handles: int
    num_threads: int


def run_soak(num_questions: int) -> list[Sample]:
    """Scores tiny questions with the bundled model, opened anew for every round of them."""
    samples = []
    # In 16 bits oneDNN keeps a kernel of each of the last 1,024 shapes: tens of MiB that do end, but late.
    machine = MachineSettings(devices="cpu", dtype="float32")
    for first in range(0, num_questions, QUESTIONS_A_ROUND):
        last = min(first + QUESTIONS_A_ROUND, num_questions)
        with Scorer.open([Member(model=MODEL, adapter=ADAPTER)], machine) as scorer:
            rows = scorer.score([_question(number) for number in range(first, last)])
        assert len(rows) == last - first
        del rows, scorer
        samples.append(_take_sample(last))
    return samples


def describe_soak(samples: Sequence[Sample]) -> dict[str, float | int]:
    """Growth over the rounds after the first ones: memory by least squares, handles and threads in all."""
    settled = samples[int(SETTLED_AFTER * len(samples)) :]
    questions = [sample.num_questions for sample in settled]
    slope = (
        np.polyfit(questions, [sample.resident_mib for sample in settled], 1)[0] if len(settled) > 1 else 0
    )
    return {
        "soak_questions": samples[-1].num_questions,
        "soak_rss_mib": samples[-1].resident_mib,
        "soak_rss_slope_mib_per_1k": float(slope) * 1000,
        "soak_new_handles": settled[-1].num_handles - settled[0].num_handles,
        "soak_new_threads": settled[-1].num_threads - settled[0].num_threads,
    }


def _question(number: int) -> Question:
    options = (f"the {number % 7} hills", "the sea", f"number {number}")
    return Question(id=str(number), prompt=f"Where does river {number} end?", options=options)


def _take_sample(num_questions: int) -> Sample:
    gc.collect()
    process = psutil.Process()
    return Sample(
        num_questions=num_questions,
        resident_mib=process.memory_info().rss / MIB,
        num_handles=process.num_fds(),
        num_threads=process.num_threads(),
    )
