"""Log-likelihoods beside lm-evaluation-harness' own, on the same weights and questions, in float32.

`lm_eval_max_abs_diff_<model>_<set>` is the largest difference of an option's log-likelihood in nats; acc and
acc_norm are computed from both sides' log-likelihoods as lm_eval.api.task.ConfigurableTask.process_results
does, and have to be the same.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from strata.engine.files import write_text_atomically
from strata.engine.json_files import read_json_object
from strata.engine.machine.settings import MachineSettings
from strata.engine.members.member import Member
from strata.engine.prompts.templates import Template
from strata.engine.questions.question_file import read_questions
from strata.engine.scorer import Scorer
from strata.engine.types import SUMS, InputError, Question, RunWarnings
from strata.scripts.bench.configs import HarnessBenchConfig
from strata.scripts.bench.record import RESULTS, append_result, asked_settings, print_environment, print_table
from strata.scripts.real_models import find_real_models

if TYPE_CHECKING:
    from lm_eval.models.huggingface import HFLM

SETS = ("arc_challenge_val", "openbookqa_dev")
STATEMENT = Template(name="lm-eval", text="Question: {{ prompt }}\nAnswer: {{ option }}")
PIECE_QUESTIONS = 50
"""Questions whose log-likelihoods are kept together."""


def run_harness_bench(config: HarnessBenchConfig) -> int:
    """Scores each set with both and prints how far they are apart. Returns the exit status."""
    try:
        import lm_eval.models.huggingface  # noqa: F401
    except ImportError as error:
        raise InputError(
            f'strata bench harness: {error}; expected pip install "strata-score[lm-eval]"'
        ) from None
    print_environment()
    for model in config.models or find_real_models():
        compare_model(config, model)
    return 0


def compare_model(config: HarnessBenchConfig, model: Path) -> None:
    """Compares on every set, prints a table and appends the model's figures."""
    lm_eval = LmEvalModel(model)
    rows = [compare_set(config, lm_eval, name) for name in config.sets or SETS]
    print_table(rows)
    figures = {f"{key}_{model.stem}_{row['set']}": row[key] for row in rows for key in row if key != "set"}
    asked = {name: value for name, value in asked_settings(config).items() if name != "models"}
    append_result("harness", {"config": asked, "model": model.stem, **figures}, RESULTS)


def compare_set(config: HarnessBenchConfig, lm_eval: LmEvalModel, name: str) -> dict[str, Any]:
    """Accuracies by both, and the largest difference of a log-likelihood."""
    path = config.data / f"{name}.jsonl"
    questions = read_questions(path, limit=config.limit, warnings=RunWarnings())
    kept = config.folder / lm_eval.model.stem / name
    theirs = keep_pieces(kept, questions, lm_eval.option_sums)
    ours = sums_by_strata(lm_eval.model, questions)
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


def keep_pieces(
    folder: Path, questions: Sequence[Question], sums: Callable[[Sequence[Question]], list[np.ndarray]]
) -> list[np.ndarray]:
    """[Q] arrays [O], computed piece by piece; pieces that an earlier call left in the folder are read.

    Raises:
        InputError: a piece that is kept is of other questions.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found: list[np.ndarray] = []
    for start in range(0, len(questions), PIECE_QUESTIONS):
        piece = questions[start : start + PIECE_QUESTIONS]
        path = folder / f"{start}-{start + len(piece)}.json"
        asked = [[question.prompt, *question.options] for question in piece]
        if not path.is_file():
            computed = [values.tolist() for values in sums(piece)]
            write_text_atomically(path, json.dumps({"asked": asked, "sums": computed}))
        kept = read_json_object(path)
        if kept["asked"] != asked:
            raise InputError(f"{path}: holds other questions; expected another --folder, or no such file")
        found += [np.array(values) for values in kept["sums"]]
    return found


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


class LmEvalModel:
    """A model as lm-evaluation-harness' `hf` model in float32, opened when it is first asked."""

    def __init__(self, model: Path) -> None:
        self.model = model

    @cached_property
    def _lm(self) -> HFLM:
        from lm_eval.models.huggingface import HFLM

        place = {"pretrained": str(self.model)}
        if self.model.is_file():
            place = {"pretrained": str(self.model.parent), "gguf_file": self.model.name}
        return HFLM(**place, device="cpu", dtype="float32", batch_size=1)

    def option_sums(self, questions: Sequence[Question]) -> list[np.ndarray]:
        """[Q] arrays [O] of log-likelihoods in nats, of one request at a time."""
        from lm_eval.api.instance import Instance

        requests = [
            Instance(
                request_type="loglikelihood",
                doc={},
                arguments=(f"Question: {question.prompt}\nAnswer:", f" {option}"),
                idx=index,
                task_name="options",
                doc_id=index,
            )
            for question in questions
            for index, option in enumerate(question.options)
        ]
        sums = np.array([total for total, _ in self._lm.loglikelihood(requests)])
        ends = np.cumsum([len(question.options) for question in questions])
        return np.split(sums, ends[:-1])
