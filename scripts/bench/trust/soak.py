"""A soak: thousands of tiny questions, model after model opened and closed; what grows is a leak."""

from __future__ import annotations

import ctypes
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
    in_use_mib: float | None
    """What malloc has given out; what is resident beyond it is kept for later. None without glibc."""
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
    in_use = [sample.in_use_mib for sample in settled if sample.in_use_mib is not None]
    return {
        "soak_questions": samples[-1].num_questions,
        "soak_rss_mib": samples[-1].resident_mib,
        "soak_rss_slope_mib_per_1k": _slope_per_1k(questions, [each.resident_mib for each in settled]),
        **({"soak_in_use_slope_mib_per_1k": _slope_per_1k(questions, in_use)} if in_use else {}),
        "soak_new_handles": settled[-1].num_handles - settled[0].num_handles,
        "soak_new_threads": settled[-1].num_threads - settled[0].num_threads,
    }


def _slope_per_1k(questions: Sequence[int], mib: Sequence[float]) -> float:
    return 1000 * float(np.polyfit(questions, mib, 1)[0]) if len(mib) > 1 else 0.0


def _question(number: int) -> Question:
    options = (f"the {number % 7} hills", "the sea", f"number {number}")
    return Question(id=str(number), prompt=f"Where does river {number} end?", options=options)


def _take_sample(num_questions: int) -> Sample:
    gc.collect()
    process = psutil.Process()
    return Sample(
        num_questions=num_questions,
        resident_mib=process.memory_info().rss / MIB,
        in_use_mib=_in_use_mib(),
        num_handles=process.num_fds(),
        num_threads=process.num_threads(),
    )


class _MallInfo2(ctypes.Structure):
    """glibc's struct mallinfo2."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks",
            "keepcost",
        )
    ]  # fmt: skip


def _in_use_mib() -> float | None:
    mallinfo2 = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if mallinfo2 is None:
        return None
    mallinfo2.restype = _MallInfo2
    info = mallinfo2()
    return (info.uordblks + info.hblkhd) / MIB
