"""`strata bench lm-eval`: lm-evaluation-harness' tasks with `--model strata` and with its own `--model hf`.

`lm_eval_speedup_<model>_<task>_<shots>` is the wall time of the hf model at its best batch size over that of
ours: opening the model and answering all requests of the task, which the harness itself makes. Importing and
building requests is left out, being the same for both. Both run in this process, in turns.

`max_abs_diff` is the largest difference of a log-likelihood between the two, in nats, and `greedy_differ` the
number of requests that only one of them finds greedy.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

from strata.engine.types import InputError
from strata.scripts.bench.lm_eval.config import (
    BATCH_SIZES,
    MODELS,
    SHOTS,
    TASKS,
    BenchedTask,
    LMEvalBenchConfig,
)
from strata.scripts.bench.lm_eval.models import make_model
from strata.scripts.bench.record import RESULTS, append_result, asked_settings, print_environment, print_table

FILES: dict[BenchedTask, str] = {
    "arc_challenge": "arc_challenge_val.jsonl",
    "openbookqa": "openbookqa_dev.jsonl",
}
# Of lm_eval/tasks/arc/arc_easy.yaml and openbookqa/openbookqa.yaml, version 0.4.13.
TEXTS: dict[BenchedTask, str] = {
    "arc_challenge": "Question: {{question}}\nAnswer:",
    "openbookqa": "{{question}}",
}


def run_lm_eval_bench(config: LMEvalBenchConfig) -> int:
    """Times every model, task and number of examples; prints and appends the results.

    Raises:
        InputError: lm-eval is absent, or a question file.
    """
    check_harness()
    print_environment()
    texts = list(question_texts(config))
    rows = []
    for name in config.models or MODELS:
        model = make_model(name, config.folder, config.dtype, texts)
        for task in config.tasks or TASKS:
            for shots in config.shots or SHOTS:
                rows.append({"model": name, **compare(model, task, shots, config)})
                print(rows[-1], flush=True)
    print_table([{key: value for key, value in row.items() if key != "hf_trials_s"} for row in rows])
    suffix = "" if config.sampler == "default" else f"_{config.sampler}"
    figures = {
        f"lm_eval_speedup_{row['model']}_{row['task']}_{row['shots']}{suffix}": row["speedup"] for row in rows
    }
    append_result("lm_eval", {"config": asked_settings(config), "rows": rows, **figures}, RESULTS)
    return 0


def check_harness() -> None:
    """Raises InputError where lm-evaluation-harness is not installed whole."""
    try:
        import lm_eval.evaluator
        import lm_eval.models.huggingface  # noqa: F401
    except ImportError as error:
        hint = 'expected pip install "strata-score[lm-eval]"'
        raise InputError(f"strata bench lm-eval: {error}; {hint}") from None


def question_texts(config: LMEvalBenchConfig) -> Iterator[str]:
    """All texts of the question files."""
    for task in config.tasks or TASKS:
        path = config.data / FILES[task]
        if not path.is_file():
            raise InputError(f"--data: no {path.name} in {config.data}")
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            yield " ".join([row["question"], *row["options"]])


def describe_task(task: BenchedTask, config: LMEvalBenchConfig) -> dict[str, Any]:
    """The harness' task over the question file."""
    metrics = [
        {"metric": name, "aggregation": "mean", "higher_is_better": True} for name in ("acc", "acc_norm")
    ]
    return {
        "task": task,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"validation": str(config.data / FILES[task])}},
        "output_type": "multiple_choice",
        "validation_split": "validation",
        "fewshot_split": "validation",
        "fewshot_config": {"sampler": config.sampler},
        "doc_to_text": TEXTS[task],
        "doc_to_target": "answer",
        "doc_to_choice": "options",
        "metric_list": metrics,
    }


def compare(model: Path, task: BenchedTask, shots: int, config: LMEvalBenchConfig) -> dict[str, Any]:
    """Seconds of both sides, and what their answers are worth."""

    def evaluate(answering: Any, limit: int | None) -> tuple[float, dict[str, Any]]:
        return answer(answering, describe_task(task, config), shots, limit)

    best, tried = choose_batch_size(model, evaluate, config)
    ours: list[float] = []
    theirs: list[float] = []
    computed = 0
    for _ in range(config.rounds):
        opened_s, strata = timed(lambda: open_strata(model, config))
        answered_s, our_results = evaluate(strata, config.limit)
        ours.append(opened_s + answered_s)
        computed = strata.tokens_computed
        strata.close()
        opened_s, harness = timed(lambda: open_hf(model, best, config))
        answered_s, their_results = evaluate(harness, config.limit)
        theirs.append(opened_s + answered_s)
        del harness
        gc.collect()
    return {
        "task": task,
        "shots": shots,
        "speedup": median(theirs) / median(ours),
        "strata_s": median(ours),
        "hf_s": median(theirs),
        "hf_batch_size": best,
        "hf_trials_s": tried,
        "tokens_computed": computed,
        "acc": our_results["acc,none"],
        "hf_acc": their_results["acc,none"],
        "acc_norm": our_results["acc_norm,none"],
        "hf_acc_norm": their_results["acc_norm,none"],
        **differences(our_results["answers"], their_results["answers"]),
    }


def differences(
    ours: Sequence[tuple[float, bool]], theirs: Sequence[tuple[float, bool]]
) -> dict[str, float | int]:
    """How far apart the answers to the same requests are."""
    pairs = list(zip(ours, theirs, strict=True))
    return {
        "requests": len(pairs),
        "max_abs_diff": max(abs(one - other) for (one, _), (other, _) in pairs),
        "greedy_differ": sum(one != other for (_, one), (_, other) in pairs),
    }


def choose_batch_size(
    model: Path, evaluate: Callable[[Any, int | None], tuple[float, Any]], config: LMEvalBenchConfig
) -> tuple[int, dict[int, float]]:
    """The batch size that answers some questions fastest, and the seconds of each."""
    tried: dict[int, float] = {}
    harness = open_hf(model, 1, config)
    few = min(config.trial_questions, config.limit or config.trial_questions)
    # The first batch of a process pays for what its libraries set up.
    evaluate(harness, 1)
    for size in config.batch_sizes or BATCH_SIZES:
        harness.batch_size_per_gpu = size
        tried[size] = evaluate(harness, few)[0]
    return min(tried, key=lambda size: tried[size]), tried


def answer(model: Any, task: dict[str, Any], shots: int, limit: int | None) -> tuple[float, dict[str, Any]]:
    """Seconds that a model takes for the requests of a task; the results, with `answers` to each request."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    # Without the harness' own tasks, a look at thousands of files.
    manager = TaskManager(include_defaults=False)
    seconds: list[float] = []
    answers: list[tuple[float, bool]] = []
    plain = model.loglikelihood

    def stopped(requests: Sequence[Any], **kwargs: Any) -> Any:
        taken, found = timed(lambda: plain(requests, **kwargs))
        seconds.append(taken)
        answers.extend(found)
        return found

    model.loglikelihood = stopped
    try:
        results = lm_eval.simple_evaluate(
            model,
            tasks=[task],
            num_fewshot=shots,
            limit=limit,
            bootstrap_iters=0,
            log_samples=False,
            task_manager=manager,
        )
    finally:
        del model.loglikelihood
    return sum(seconds), {**results["results"][task["task"]], "answers": answers}


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of a call, and what it returns."""
    started = perf_counter()
    found = run()
    return perf_counter() - started, found


def open_strata(model: Path, config: LMEvalBenchConfig) -> Any:
    """What `--model strata` opens."""
    from strata.scripts.bridges.lm_eval import StrataLM

    return StrataLM(str(model), dtype=config.dtype, devices=config.device)


def open_hf(model: Path, batch_size: int, config: LMEvalBenchConfig) -> Any:
    """What `--model hf` opens."""
    from lm_eval.models.huggingface import HFLM

    return HFLM(str(model), device=config.device, dtype=config.dtype, batch_size=batch_size)
