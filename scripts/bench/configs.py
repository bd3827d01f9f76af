"""Settings of the benches. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class QuestionSize:
    """How large a synthetic question is."""

    prefix_tokens: int
    """Tokens that its options share."""
    option_tokens: int
    """Tokens of each option."""
    num_options: int
    """Its options."""

    @property
    def num_tokens(self) -> int:
        """Tokens of its prefix tree, each counted once."""
        return self.prefix_tokens + self.num_options * self.option_tokens


@dataclass(frozen=True, kw_only=True)
class SweepBenchConfig:
    """Settings of the sweep bench."""

    shape: Literal["tinyllama-1.1b", "llama2-7b", "llama2-13b", "llama2-70b"] = "tinyllama-1.1b"
    """Shape of the random checkpoint."""
    parts: tuple[Literal["core", "formats", "throttle", "agreement", "peers"], ...] = ()
    """What to measure; all by default. Agreement needs a trained model, peers those that are installed."""
    storage: Literal["nf4", "int8", "bnb8", "gptq", "awq", "int4", "fp8"] | None = None
    """Format of the checkpoint that `strata bench checkpoint` makes; bfloat16 without one."""
    folder: Path = Path("runs/bench")
    """Where the checkpoint is made and kept (delete it when done)."""
    num_questions: int = 8
    """Questions of the strata runs."""
    num_dynamic_questions: int = 2
    """Questions of the DynamicCache loop in each round."""
    num_naive_questions: int = 2
    """Questions of the loop over single options, which is slow."""
    prefix_tokens: int = 1200
    """Tokens that the options of a question share."""
    option_tokens: int = 45
    """Tokens an option."""
    num_options: int = 5
    """Options a question."""
    rounds: int = 3
    """How often each kind of run is repeated, in turns; medians are reported."""
    minutes: float = 10.0
    """About how long all may take: a slow machine measures fewer rounds, questions and layers."""
    num_layers: int | None = None
    """Layers of the checkpoint; all of the shape's by default, or as many as --minutes allows."""
    memory_gib: float | None = None
    """Budget of the streamed run; a quarter of the checkpoint by default, or what two layers take."""
    micro_batch_tokens: int | None = None
    """Fix the planner's choice."""
    device: str = "auto"
    """cpu or cuda:0; auto takes the first CUDA device."""
    format_layers: int = 11
    """Layers of the checkpoints of part formats."""
    format_rounds: int = 1
    """Rounds of each format."""
    format_dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """What all formats are computed in; auto is what the device is fastest in."""
    trained_model: Path | None = None
    """Checkpoint with a tokenizer for part agreement; left out without one."""
    trained_questions: Path | None = None
    """Question file for part agreement."""
    peer_questions: int = 24
    """Questions that strata scores in part peers."""
    peers_python: Path | None = None
    """Interpreter that has the peers; this one by default."""

    @property
    def question_size(self) -> QuestionSize:
        """How large each question is."""
        return QuestionSize(
            prefix_tokens=self.prefix_tokens,
            option_tokens=self.option_tokens,
            num_options=self.num_options,
        )


@dataclass(frozen=True, kw_only=True)
class LargeBenchConfig:
    """Settings of the bench of a model far bigger than memory."""

    shape: Literal["tiny", "tinyllama-1.1b", "llama2-7b", "llama2-13b", "llama2-70b"] = "llama2-13b"
    """Shape of the random checkpoint."""
    storage: Literal["nf4", "int8", "bnb8", "gptq", "awq", "int4", "fp8"] | None = None
    """Its storage format; bfloat16 without one."""
    folder: Path = Path("runs/bench")
    """Where the checkpoint is made."""
    keep: bool = False
    """Keep the checkpoint."""
    limit_gib: float = 6.0
    """What the whole process may take."""
    memory_gib: float = 4.5
    """Budget that the planner gets, beyond what the libraries take."""
    dtype: Literal["auto", "float32", "bfloat16", "int8"] = "auto"
    """Compute dtype."""
    num_questions: int = 2
    """Questions."""
    prefix_tokens: int = 500
    """Tokens that the options of a question share."""
    option_tokens: int = 40
    """Tokens an option."""
    num_options: int = 5
    """Options a question."""

    @property
    def question_size(self) -> QuestionSize:
        """How large each question is."""
        return QuestionSize(
            prefix_tokens=self.prefix_tokens,
            option_tokens=self.option_tokens,
            num_options=self.num_options,
        )


@dataclass(frozen=True, kw_only=True)
class HarnessBenchConfig:
    """Settings of the comparison with lm-evaluation-harness."""

    data: Path
    """Folder with <set>.jsonl: id, question, options[], answer."""
    models: tuple[Path, ...] = ()
    """Decoder checkpoints or GGUF files; by default those that `make real-models` installs."""
    sets: tuple[str, ...] = ()
    """Question files of the folder, without suffix; arc_challenge_val and openbookqa_dev by default."""
    limit: int | None = None
    """Only the first N questions of each."""
    folder: Path = Path("runs/bench/harness")
    """Where the harness' answers are kept: a second call goes on where the first one stopped."""


@dataclass(frozen=True, kw_only=True)
class CalibrateConfig:
    """Settings of the calibration."""

    out: Path | None = None
    """File to save the profile in; by default where `strata plan` and `strata score` look for it."""
    folder: Path = Path("runs/bench")
    """A folder on the disk to measure."""


@dataclass(frozen=True, kw_only=True)
class PlanErrorConfig:
    """Settings of the bench of predicted against measured time."""

    profile: str | None = None
    """Profile to predict with; this machine's calibration by default."""
    folder: Path = Path("runs/bench")
    """Where checkpoints are made and kept (delete them when done)."""
    only: str | None = None
    """Only the configurations whose names hold this."""
    num_layers: int = 8
    """Layers of the checkpoint, of TinyLlama's shape."""
    rounds: int = 1
    """How often each configuration is measured; the median counts."""


@dataclass(frozen=True, kw_only=True)
class RetrievalBenchConfig:
    """Settings of the retrieval bench."""

    data: Path
    """Folder with scifact/, kaggle200.csv, stem1k.csv, wiki_passages.jsonl; what is absent is left out."""
    folder: Path = Path("runs/bench/retrieval")
    """Where indexes are built and kept (delete them when done)."""
    encoder: str | None = None
    """Sentence-transformers encoder for dense search, a folder or name (all-MiniLM-L6-v2 is that of the extra
    `encoder`); left out without one."""
    cross_encoder: Path | None = None
    """Cross-encoder for reranking; without it and --member, documents are reranked by the encoder's nearest
    sentence."""
    member: Path | None = None
    """Decoder checkpoint for reranking."""
    keep: int = 20
    """Documents a query that are reranked; the others follow as they were."""
    limit: int | None = None
    """Only the first N queries or questions of each set."""


@dataclass(frozen=True, kw_only=True)
class RetrievalSpeedConfig:
    """Settings of the bench of retrieval's speed and memory."""

    parts: tuple[Literal["topk", "bm25", "encode", "build"], ...] = ()
    """What to measure; all by default. Encode needs --encoder."""
    folder: Path = Path("runs/bench/retrieval-speed")
    """Where vectors, passages and indexes are made and kept (delete them when done)."""
    num_vectors: int = 1_000_000
    """Vectors of part topk, of 384 dimensions."""
    num_passages: int = 1_000_000
    """Passages of part bm25."""
    num_queries: int = 200
    """Queries of both."""
    build_passages: int = 100_000
    """Passages of the smaller build of part build; the larger one has ten times as many."""
    encoder: str | None = None
    """Sentence-transformers encoder, a folder or name."""
    encode_passages: int = 2_000
    """Passages of part encode."""
    device: str = "cpu"
    """Where the encoder runs."""
    rounds: int = 5
    """How often each is repeated; medians are reported."""


@dataclass(frozen=True, kw_only=True)
class TrainBenchConfig:
    """Settings of the training bench."""

    parts: tuple[Literal["packed", "streamed", "demo", "large"], ...] = ()
    """What to measure; all but large by default."""
    shape: Literal["tinyllama-1.1b", "llama2-7b", "llama2-13b", "llama2-70b"] = "tinyllama-1.1b"
    """Shape of the random checkpoint of parts packed and streamed."""
    num_layers: int = 8
    """Its layers."""
    folder: Path = Path("runs/bench/train")
    """Where checkpoints are made and kept (delete them when done)."""
    num_questions: int = 2
    """Questions a step."""
    prefix_tokens: int = 1000
    """Tokens that the options of a question share."""
    option_tokens: int = 60
    """Tokens an option."""
    num_options: int = 5
    """Options a question."""
    rounds: int = 3
    """How often each kind of step is repeated, in turns; medians are reported."""
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    """What the base model computes in; LoRA and head are float32."""
    device: str = "auto"
    """cpu or cuda:0."""
    large_shape: Literal["tinyllama-1.1b", "llama2-7b", "llama2-13b", "llama2-70b"] = "llama2-7b"
    """Shape of part large, which trains one streamed step under a memory limit."""
    large_storage: Literal["nf4", "int8"] | None = None
    """Format of its checkpoint; bfloat16 without one."""
    limit_gib: float = 4.0
    """The limit of part large: of the whole resident set, and of a memory cgroup where one can be made."""

    @property
    def question_size(self) -> QuestionSize:
        """How large each question is."""
        return QuestionSize(
            prefix_tokens=self.prefix_tokens,
            option_tokens=self.option_tokens,
            num_options=self.num_options,
        )


@dataclass(frozen=True, kw_only=True)
class TrainEncoderBenchConfig:
    """Settings of the bench of a trained encoder."""

    data: Path
    """Folder with stem1k.csv, mcq6k.csv, kaggle200.csv and wiki_passages.jsonl."""
    encoder: str = "all-MiniLM-L6-v2"
    """Encoder to train: a checkpoint folder, or the name of one that an installed package holds."""
    folder: Path = Path("runs/bench/train-encoder")
    """Where index, question files, model and run are made (delete it when done). A second call with the same
    settings goes on with an interrupted training."""
    limit: int | None = None
    """Only the first N questions of each training set."""
    epochs: float = 3.0
    """Passes over the training questions."""
    learning_rate: float = 5e-5
    """Peak learning rate."""
    head_lr_scale: float = 5.0
    """Learning rate of the head, which is new, as a multiple of it."""
    batch_questions: int = 16
    """Questions an optimizer step."""
    max_tokens: int = 256
    """Longest row; contexts are cut to it."""
    context_tokens: int = 180
    """Budget of a retrieved context."""
    dtype: Literal["auto", "bfloat16"] = "auto"
    """What training computes in; bfloat16 halves the time where the processor has it."""
    lora: bool = False
    """Train LoRA and the head instead of all weights."""
    threads: int | None = None
    """Torch's threads; all cores by default."""
    seed: int = 0
    """Of everything random."""
