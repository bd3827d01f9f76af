"""The commands `strata bench ...`. Knows flags only; a command loads its heavy modules."""

from __future__ import annotations

from tyro.extras import SubcommandApp

from strata.scripts.bench.accuracy.config import AccuracyBenchConfig, Int8BenchConfig, LoraBenchConfig
from strata.scripts.bench.configs import (
    CalibrateConfig,
    HarnessBenchConfig,
    LargeBenchConfig,
    PlanErrorConfig,
    RetrievalBenchConfig,
    RetrievalSpeedConfig,
    SweepBenchConfig,
    TrainBenchConfig,
    TrainEncoderBenchConfig,
)
from strata.scripts.bench.deadline.config import DeadlineBenchConfig
from strata.scripts.bench.debias.config import DebiasBenchConfig
from strata.scripts.bench.gpu.config import GpuBenchConfig
from strata.scripts.bench.lm_eval.config import LMEvalBenchConfig
from strata.scripts.bench.members.config import MembersBenchConfig
from strata.scripts.bench.rows.config import RowsBenchConfig
from strata.scripts.bench.start.config import StartBenchConfig
from strata.scripts.bench.trace.config import TraceBenchConfig
from strata.scripts.bench.trust.trust_config import TrustBenchConfig

bench_app = SubcommandApp()


@bench_app.command(name="sweep")
def sweep(config: SweepBenchConfig) -> int:
    """Compare the sweep with the GEMM roofline and Hugging Face loops, on random weights of a real shape.

    Takes about --minutes. Interrupted, it goes on from there when it is called again.

    Example: strata bench sweep --shape tinyllama-1.1b
    """
    from strata.scripts.bench.sweep.sweep import run_sweep_bench

    return run_sweep_bench(config)


@bench_app.command(name="checkpoint")
def checkpoint(config: SweepBenchConfig) -> int:
    """Only make the random checkpoint of `strata bench sweep`.

    Example: strata bench checkpoint --shape llama2-7b
    """
    from strata.scripts.bench.sweep.sweep import make_checkpoint

    print(make_checkpoint(config))
    return 0


@bench_app.command(name="large")
def large(config: LargeBenchConfig) -> int:
    """Score with a model far bigger than memory, under a hard limit where a memory cgroup can be made.

    Example: strata bench large --shape llama2-70b --storage nf4 --limit-gib 8 --memory-gib 6.5
    """
    from strata.scripts.bench.large.large import run_large_bench

    return run_large_bench(config)


@bench_app.command(name="train")
def train(config: TrainBenchConfig) -> int:
    """Time training steps: prefixes shared or repeated, weights resident or streamed.

    Example: strata bench train --parts packed --parts streamed
    """
    from strata.scripts.bench.train.train import run_train_bench

    return run_train_bench(config)


@bench_app.command(name="train-encoder")
def train_encoder(config: TrainEncoderBenchConfig) -> int:
    """Train a small encoder on questions with retrieved contexts; MAP@3 beside what needs no training.

    Example: strata bench train-encoder --data DIR
    """
    from strata.scripts.bench.train.encoder import run_train_encoder_bench

    return run_train_encoder_bench(config)


@bench_app.command(name="harness")
def harness(config: HarnessBenchConfig) -> int:
    """Compare log-likelihoods, acc and acc_norm with lm-evaluation-harness' own on the same model.

    Example: strata bench harness --data DIR --limit 60
    """
    from strata.scripts.bench.harness import run_harness_bench

    return run_harness_bench(config)


@bench_app.command(name="lm-eval")
def lm_eval(config: LMEvalBenchConfig) -> int:
    """Time lm-evaluation-harness' tasks with `--model strata` and with its own `--model hf`.

    Example: strata bench lm-eval --data DIR --limit 100
    """
    from strata.scripts.bench.lm_eval.lm_eval import run_lm_eval_bench

    return run_lm_eval_bench(config)


@bench_app.command(name="trace")
def trace(config: TraceBenchConfig) -> int:
    """Count what a layer asks of a card at true sizes, without one: kernels, masks, attention's scores.

    Example: strata bench trace --shape llama2-70b
    """
    from strata.scripts.bench.trace.trace import run_trace_bench

    return run_trace_bench(config)


@bench_app.command(name="debias")
def debias(config: DebiasBenchConfig) -> int:
    """Measure what taking out position bias costs: tokens of each way, time of all rotations in one tree.

    Example: strata bench debias --parts tokens
    """
    from strata.scripts.bench.debias.debias import run_debias_bench

    return run_debias_bench(config)


@bench_app.command(name="accuracy")
def accuracy(config: AccuracyBenchConfig) -> int:
    """Score real questions with real language models, in every way of asking; MAP@3 beside heuristics.

    Example: strata bench accuracy --data DIR --heads loglik --heads letters
    """
    from strata.scripts.bench.accuracy.accuracy import run_accuracy_bench

    return run_accuracy_bench(config)


@bench_app.command(name="lora")
def lora(config: LoraBenchConfig) -> int:
    """Train a LoRA of a real model on questions with contexts; MAP@3 before and after.

    Example: strata bench lora --data DIR
    """
    from strata.scripts.bench.accuracy.lora import run_lora_bench

    return run_lora_bench(config)


@bench_app.command(name="int8")
def int8(config: Int8BenchConfig) -> int:
    """Compare a real model's answers in int8, calibrated or not, and in bfloat16 with those in float32.

    Example: strata bench int8 --data DIR
    """
    from strata.scripts.bench.accuracy.int8 import run_int8_bench

    return run_int8_bench(config)


@bench_app.command(name="deadline")
def deadline(config: DeadlineBenchConfig) -> int:
    """Measure what a run of two stages makes of a third of the time that it would take.

    Example: strata bench deadline
    """
    from strata.scripts.bench.deadline.deadline import run_deadline_bench

    return run_deadline_bench(config)


@bench_app.command(name="members")
def members(config: MembersBenchConfig) -> int:
    """Measure several adapters in one sweep over streamed layers, beside what that can take at best.

    Example: strata bench members --num-adapters 4
    """
    from strata.scripts.bench.members.members import run_members_bench

    return run_members_bench(config)


@bench_app.command(name="rows")
def rows(config: RowsBenchConfig) -> int:
    """Count what rows save that share a question's text, and predict the job on a machine's profile.

    Example: strata bench rows --rows 16000 --questions 16
    """
    from strata.scripts.bench.rows.rows import run_rows_bench

    return run_rows_bench(config)


@bench_app.command(name="start")
def start(config: StartBenchConfig) -> int:
    """Measure how long `strata --help` takes, and `strata score` until its first layer.

    Example: strata bench start
    """
    from strata.scripts.bench.start.start import run_start_bench

    return run_start_bench(config)


@bench_app.command(name="trust")
def trust(config: TrustBenchConfig) -> int:
    """Count what of families, hostile files and odd bytes is not right, and measure what trust costs.

    Example: strata bench trust --parts probe --parts deterministic
    """
    from strata.scripts.bench.trust.trust import run_trust_bench

    return run_trust_bench(config)


@bench_app.command(name="gpu")
def gpu(config: GpuBenchConfig) -> int:
    """Accept the GPUs of this machine: what is right on them, then how fast they are. Nine minutes a part.

    Example: strata bench gpu correct
    """
    from strata.scripts.bench.gpu.gpu import run_gpu_bench

    return run_gpu_bench(config)


@bench_app.command(name="calibrate")
def calibrate(config: CalibrateConfig) -> int:
    """Measure this machine, for the plans of `strata plan` and `strata score`.

    Takes about a minute where nothing else runs. Interrupted, it goes on from there when it is called again.

    Example: strata bench calibrate
    """
    from strata.scripts.bench.calibrate.calibrate import run_calibration

    return run_calibration(config)


@bench_app.command(name="plan-error")
def plan_error(config: PlanErrorConfig) -> int:
    """Compare predicted with measured time over configurations of the sweep; calibrate first.

    Example: strata bench plan-error
    """
    from strata.scripts.bench.calibrate.plan_error import run_plan_error

    return run_plan_error(config)


@bench_app.command(name="retrieval")
def retrieval(config: RetrievalBenchConfig) -> int:
    """Measure searchers on judged queries, on questions with a known passage, and their speed.

    Example: strata bench retrieval --data DIR --encoder DIR
    """
    from strata.scripts.bench.retrieval.retrieval import run_retrieval_bench

    return run_retrieval_bench(config)


@bench_app.command(name="retrieval-speed")
def retrieval_speed(config: RetrievalSpeedConfig) -> int:
    """Measure exact top-k against faiss, BM25 and encoding rates, and the memory of a build.

    Example: strata bench retrieval-speed --parts topk --parts bm25
    """
    from strata.scripts.bench.retrieval.speed import run_retrieval_speed_bench

    return run_retrieval_speed_bench(config)
