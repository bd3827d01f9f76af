"""Log-likelihoods beside lm-evaluation-harness' own, on the same weights and questions, in float32.

`lm_eval_max_abs_diff_<model>_<set>` is the largest difference of an option's log-likelihood in nats; acc and
acc_norm are computed from both sides' log-likelihoods as lm_eval.api.task.ConfigurableTask.process_results
does, and have to be the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from strata.engine.heads.loglik import SUMS
from strata.engine.machine.settings import MachineSettings
from strata.engine.members.member import Member
from strata.engine.prompts.templates import Template
from strata.engine.questions.question_file import read_questions
from strata.engine.scorer import Scorer
from strata.engine.types import InputError, Question, RunWarnings
from strata.scripts.bench.configs import HarnessBenchConfig
from strata.scripts.bench.record import RESULTS, append_result, asked_settings, print_environment, print_table

SETS = ("arc_challenge_val", "openbookqa_dev")
STATEMENT = Template(name="lm-eval", text="Question: {{ prompt }}\nAnswer: {{ option }}")


def run_harness_bench(config: HarnessBenchConfig) -> int:
    """Scores each set with both and prints how far they are apart. Returns the exit status."""
    try:
        import lm_eval.models.huggingface  # noqa: F401
    except ImportError as error:
        raise InputError(
            f"strata bench harness: {error}; expected pip install 'strata-score[lm-eval]'"
        ) from None
    print_environment()
    rows = [compare_set(config, name) for name in config.sets or SETS]
    print_table(rows)
    model = config.model.stem
    figures = {f"{key}_{model}_{row['set']}": row[key] for row in rows for key in row if key != "set"}
    append_result("harness", {"config": asked_settings(config), "model": model, **figures}, RESULTS)
    return 0


def compare_set(config: HarnessBenchConfig, name: str) -> dict[str, Any]:
    """Accuracies by both, and the largest difference of a log-likelihood."""
    path = config.data / f"{name}.jsonl"
    questions = read_questions(path, limit=config.limit, warnings=RunWarnings())
    ours, theirs = sums_by_strata(config.model, questions), sums_by_lm_eval(config.model, questions)
    pairs = zip(ours, theirs, strict=True)
    row = {
        "set": name,
        "questions": len(questions),
        "acc": accuracy(ours, questions, by_length=False),
        "lm_eval_acc": accuracy(theirs, questions, by_length=False),
        "acc_norm": accuracy(ours, questions, by_length=True),
        "lm_eval_acc_norm": accuracy(theirs, questions, by_length=True),
        "lm_eval_max_abs_diff": max(float(np.abs(one - other).max()) for one, other in pairs),
    }
    print(row, flush=True)
    return row


def accuracy(sums: Sequence[np.ndarray], questions: Sequence[Question], *, by_length: bool) -> float:
    """Share of questions whose most likely option is the answer; lm-eval's acc, or acc_norm by length."""
    hits = []
    for values, question in zip(sums, questions, strict=True):
        lengths = np.array([float(len(option)) for option in question.options])
        hits.append(int(np.argmax(values / lengths if by_length else values)) == question.answer)
    return float(np.mean(hits))


def sums_by_strata(model: Path, questions: Sequence[Question]) -> list[np.ndarray]:
    """[Q] arrays [O] of log-likelihoods in nats."""
    member = Member(model=model, head="loglik", template=STATEMENT, context="none")
    with Scorer.open([member], MachineSettings(dtype="float32")) as scorer:
        return [row.member_scores[SUMS] for row in scorer.score(questions)]


def sums_by_lm_eval(model: Path, questions: Sequence[Question]) -> list[np.ndarray]:
    """The same from lm-evaluation-harness' `hf` model, one request at a time."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    is_file = model.is_file()
    found = (
        {"pretrained": str(model.parent), "gguf_file": model.name} if is_file else {"pretrained": str(model)}
    )
    lm = HFLM(**found, device="cpu", dtype="float32", batch_size=1)
    requests = [
        Instance(
            request_type="loglikelihood",
            doc={},
            arguments=(f"Question: {question.prompt}\nAnswer:", f" {option}"),
            idx=index,
        )
        for question in questions
        for index, option in enumerate(question.options)
    ]
    sums = np.array([total for total, _ in lm.loglikelihood(requests)])
    ends = np.cumsum([len(question.options) for question in questions])
    return np.split(sums, ends[:-1])
