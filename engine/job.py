"""Prepares a scoring job: reads and checks all input, renders prompts, builds the tree, plans the sweep.

Flow: ScoreConfig -> questions, checkpoint headers, adapters -> head and template -> prompts -> prefix tree
and targets -> plan. Reads no weights; whatever is wrong with the input is found here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from strata.engine.adapters import Adapter, read_adapter
from strata.engine.checkpoint import Checkpoint, open_checkpoint
from strata.engine.checksums import read_checksums
from strata.engine.formats.registry import ignored_settings
from strata.engine.heads import TargetTable, build_target_table, choose_head
from strata.engine.job_plan import plan_job
from strata.engine.machine import MachineRates
from strata.engine.model import LENGTH_DEPENDENT_ROPE, rope_type
from strata.engine.partial_scores import PartialScores, fingerprint_job
from strata.engine.plan import Budgets, SweepPlan
from strata.engine.prefix_tree import PrefixTree, build_prefix_tree
from strata.engine.prompts import render_prompts
from strata.engine.questions import read_questions
from strata.engine.score_config import ScoreConfig
from strata.engine.sweep import SweepJob
from strata.engine.templates import load_template
from strata.engine.types import InputError, Prompt, Question, QuestionScores, RunWarnings


class PhaseTimer:
    """Seconds by phase, in order of first use."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Adds the block's wall time to a phase."""
        started = perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + perf_counter() - started


@dataclass(frozen=True, kw_only=True, eq=False)
class ScoringJob:
    """A checked and planned job.

    `prompts` are those still to score, `all_prompts` with those that an interrupted run has `done`;
    `completed` lists for each group the indexes of the prompts whose last readout it holds.
    """

    config: ScoreConfig
    head: str
    template_name: str
    questions: list[Question]
    prompts: list[Prompt]
    all_prompts: list[Prompt]
    targets: TargetTable
    sweep: SweepJob
    completed: tuple[tuple[int, ...], ...]
    rates: MachineRates
    budgets: Budgets
    fingerprint: str
    done: dict[str, QuestionScores]

    @property
    def tree(self) -> PrefixTree:
        """All branches of all questions."""
        return self.sweep.tree

    @property
    def plan(self) -> SweepPlan:
        """How the job is swept."""
        return self.sweep.plan

    @property
    def checkpoint(self) -> Checkpoint:
        """The model."""
        return self.sweep.checkpoint

    @property
    def tokens_per_option_run(self) -> int:
        """Tokens that scoring every distinct path alone would compute."""
        return sum(
            sum(
                map(
                    len, {branch.token_ids.tobytes(): branch.token_ids for branch in prompt.branches}.values()
                )
            )
            for prompt in self.prompts
        )


def prepare_job(config: ScoreConfig, warnings: RunWarnings, timer: PhaseTimer) -> ScoringJob:
    """Reads everything but weights, and plans.

    Raises:
        InputError: whatever makes the job meaningless, in one line.
    """
    config.check()
    with timer.phase("read input"):
        _check_out(config.out)
        questions = read_questions(
            config.questions, context_column=config.context_column, limit=config.limit, warnings=warnings
        )
        checkpoint = open_checkpoint(config.model)
        for line in ignored_settings(checkpoint.quantization):
            warnings.say(line)
        if config.verify:
            read_checksums(config.model)
        adapters = _read_adapters(config, checkpoint)
        head = choose_head(config.head, checkpoint, adapters[0].score if adapters else None)
    with timer.phase("tokenize"):
        prompts, template_name = _render(config, head, questions, checkpoint, warnings)
    fingerprint = fingerprint_job(
        prompts, (config.model.resolve(), head, template_name, config.dtype, *config.adapter)
    )
    done: dict[str, QuestionScores] = {}
    if config.resume:
        done = PartialScores(config.out, fingerprint).read(questions)
    with timer.phase("plan"):
        # Were all done, the last one is scored again: a run without a sweep would have nothing to measure.
        left = [prompt for prompt in prompts if prompt.question.id not in done] or prompts[-1:]
        tree = build_prefix_tree([branch.token_ids for prompt in left for branch in prompt.branches])
        targets = build_target_table(left, tree)
        planned = plan_job(config, head, checkpoint, adapters, left, tree, targets)
    _warn_of_rope(checkpoint, tree, warnings)
    _warn_of_overrides(config, planned.sweep.plan, checkpoint.num_layers, warnings)
    return ScoringJob(
        config=config,
        head=head,
        template_name=template_name,
        questions=questions,
        prompts=left,
        all_prompts=prompts,
        targets=targets,
        sweep=planned.sweep,
        completed=planned.completed,
        rates=planned.rates,
        budgets=planned.budgets,
        fingerprint=fingerprint,
        done=done,
    )


def describe_plan(job: ScoringJob) -> dict[str, object]:
    """The plan as run.json keeps it."""
    return {
        **asdict(job.plan),
        "tokens_computed": job.plan.tokens,
        "sweep_s": job.plan.predicted_s,
        "head": job.head,
        "template": job.template_name,
        "members": list(job.sweep.members),
        "trie_nodes": job.tree.num_tokens,
        "tokens_per_option_run": job.tokens_per_option_run,
        "num_micro_batches": math.ceil(job.tree.num_tokens / job.plan.micro_batch_tokens),
        "budgets": asdict(job.budgets),
        "rates": asdict(job.rates),
    }


def _check_out(out: Path) -> None:
    existing = next((folder for folder in (out, *out.parents) if folder.exists()), None)
    if existing is not None and not existing.is_dir():
        raise InputError(f"--out: {existing} is a file; expected a folder")


def _read_adapters(config: ScoreConfig, checkpoint: Checkpoint) -> tuple[Adapter, ...]:
    adapters = tuple(
        read_adapter(path, hidden_size=checkpoint.config.hidden_size, num_layers=checkpoint.num_layers)
        for path in config.adapter
    )
    names = [adapter.name for adapter in adapters]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"--adapter: two adapters are called {twice!r}; expected folders of different names")
    with_score = [adapter.name for adapter in adapters if adapter.score is not None]
    if with_score and len(with_score) < len(adapters):
        missing = next(adapter.name for adapter in adapters if adapter.score is None)
        raise InputError(
            f"--adapter: {with_score[0]!r} brings a score head but {missing!r} does not; expected all or none"
        )
    return adapters


def _render(
    config: ScoreConfig, head: str, questions: list[Question], checkpoint: Checkpoint, warnings: RunWarnings
) -> tuple[list[Prompt], str]:
    template = load_template(config.template, head=head)
    prompts = render_prompts(
        questions,
        tokenizer=read_tokenizer(config.model),
        template=template,
        head=head,
        debias=config.debias,
        max_tokens=config.max_tokens,
        window=getattr(checkpoint.config, "max_position_embeddings", None),
        warnings=warnings,
        source=str(config.questions),
    )
    largest = max(int(branch.token_ids.max()) for prompt in prompts for branch in prompt.branches)
    vocabulary = checkpoint.require_plain("embed_tokens.weight").shape[0]
    if largest >= vocabulary:
        raise InputError(
            f"{config.model}: the tokenizer makes token id {largest}; expected ids below {vocabulary}, "
            "the model's vocabulary"
        )
    return prompts, template.name


def read_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    """The checkpoint's own tokenizer.

    Raises:
        InputError: there is none that transformers can read.
    """
    files = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "vocab.txt")
    if not any((path / name).is_file() for name in files):
        raise InputError(
            f"{path}: no tokenizer; expected tokenizer.json or tokenizer.model beside the weights"
        )
    try:
        return AutoTokenizer.from_pretrained(path, local_files_only=True)
    except (ValueError, OSError, ImportError, KeyError) as error:
        raise InputError(
            f"{path}: transformers cannot read the tokenizer: {str(error).splitlines()[0]}"
        ) from None


def _warn_of_overrides(config: ScoreConfig, plan: SweepPlan, num_layers: int, warnings: RunWarnings) -> None:
    if config.num_groups is not None and config.num_groups != plan.num_groups:
        warnings.say(f"--num-groups {config.num_groups}: the job has prompts for {plan.num_groups} only")
    if config.resident_layers is not None and config.resident_layers > num_layers:
        warnings.say(f"--resident-layers {config.resident_layers}: the model has {num_layers} layers")


def _warn_of_rope(checkpoint: Checkpoint, tree: PrefixTree, warnings: RunWarnings) -> None:
    longest = int(tree.position_ids.max()) + 1
    supported = getattr(checkpoint.config, "max_position_embeddings", longest)
    original = getattr(checkpoint.config, "original_max_position_embeddings", None) or supported
    if rope_type(checkpoint.config) in LENGTH_DEPENDENT_ROPE and longest > original:
        warnings.say(
            f"rotary scaling {rope_type(checkpoint.config)!r} depends on length: the whole job uses the "
            f"setting of its longest prompt, {longest} tokens "
            f"(a run of each prompt alone would switch at {original})"
        )
