"""What int8 does to a real model's answers, with and without calibration, beside what bfloat16 does.

`int8_rank_agreement` is how often int8's best option is float32's over how often bfloat16's is, for the model
as it is stored; `int8_calibrated_rank_agreement` the same for one of `strata pack --format int8 --calibrate`.
`<way>_score_rms_error` is over all options, in nats a character, each question's mean removed.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from strata.engine.config import ScoreConfig
from strata.engine.json_files import read_json_object
from strata.engine.machine.product_rates import product_rates
from strata.engine.pack.config import PackConfig
from strata.engine.results.tables import read_scores
from strata.engine.run.score import score_questions
from strata.scripts.bench.accuracy.config import Int8BenchConfig
from strata.scripts.bench.record import RESULTS, append_result, asked_settings, print_environment, print_table
from strata.scripts.pack import run_pack
from strata.scripts.real_models import find_smollm2

EXACT, CALIBRATED = "float32", "int8_calibrated"

Scores = Mapping[str, np.ndarray]


def run_int8_bench(config: Int8BenchConfig) -> int:
    """Scores in every way, prints a table and appends the figures. Returns the exit status."""
    print_environment()
    source = config.model or find_smollm2()
    packed = config.folder / "packed"
    if not packed.is_dir():
        calibration = config.data / f"{config.calibration_set}.jsonl"
        run_pack(
            PackConfig(
                model=source,
                format="int8",
                out=packed,
                calibrate=calibration,
                alpha=config.alpha,
                plain=config.plain,
            )
        )
    ways = {EXACT: source, "bfloat16": source, "int8": source, CALIBRATED: packed}
    found = {way: score_set(config, model, way) for way, model in ways.items()}
    exact = found.pop(EXACT)
    agreement = {way: top1_agreement(scores, exact) for way, scores in found.items()}
    errors = {way: rms_error(scores, exact) for way, scores in found.items()}
    print_table([{"way": way, "same best option": agreement[way], "RMS error": errors[way]} for way in found])
    figures = {
        "num_questions": len(exact),
        "int8_rank_agreement": agreement["int8"] / agreement["bfloat16"],
        "int8_calibrated_rank_agreement": agreement[CALIBRATED] / agreement["bfloat16"],
        **{f"{way}_top1_agreement": value for way, value in agreement.items()},
        **{f"{way}_score_rms_error": value for way, value in errors.items()},
    }
    append_result("int8", {"config": asked_settings(config) | {"model": source.stem}, **figures}, RESULTS)
    return 0


def score_set(config: Int8BenchConfig, model: Path, way: str) -> Scores:
    """Scores [O] by question id, of a run that is kept, gone on with, or begun."""
    out = config.folder / way
    record = out / "run.json"
    if not (record.is_file() and read_json_object(record)["status"] == "done"):
        asked = ScoreConfig.from_flags(
            model=model,
            questions=config.data / f"{config.question_set}.jsonl",
            out=out,
            head="loglik",
            dtype="int8" if way == CALIBRATED else way,
            int8_check_questions=0,
            limit=config.limit,
            resume=True,
        )
        # It is asked how exact int8 is, also where it is slow.
        score_questions(asked, product_rates().with_int8())
    return {row.question.id: row.scores for row in read_scores(out / "scores.parquet")}


def top1_agreement(found: Scores, exact: Scores) -> float:
    """Share of the questions whose best option is the same."""
    return float(np.mean([found[name].argmax() == scores.argmax() for name, scores in exact.items()]))


def rms_error(found: Scores, exact: Scores) -> float:
    """Over all options, each question's mean difference removed."""
    differences = [found[name] - scores for name, scores in exact.items()]
    return float(np.sqrt(np.mean(np.concatenate([one - one.mean() for one in differences]) ** 2)))
