"""Prepares a scoring job: reads and checks all input, renders prompts, builds the tree, plans the sweep.

Flow: ScoreConfig -> questions, checkpoint headers, adapters -> head and template -> prompts -> prefix tree
and targets -> plan. Reads no weights; whatever is wrong with the input is found here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import perf_counter

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from strata.engine.adapters import Adapter, check_shapes, read_adapter
from strata.engine.checkpoint import Checkpoint, open_checkpoint
from strata.engine.costs import model_costs
from strata.engine.embedding import embedding_bytes, tokens_in_use
from strata.engine.heads import CLASSIFIER_HEADS, TargetTable, build_target_table, choose_head
from strata.engine.layer_loader import LayerLoader
from strata.engine.machine import (
    DTYPES,
    MachineRates,
    device_budget_bytes,
    host_budget_bytes,
    measure_rates,
    resolve_devices,
    resolve_dtype,
)
from strata.engine.model import LENGTH_DEPENDENT_ROPE, build_decoder, rope_type
from strata.engine.plan import Budgets, PlanOverrides, SweepPlan, measure_workload, plan_sweep
from strata.engine.prefix_tree import PrefixTree, build_prefix_tree
from strata.engine.prompts import render_prompts
from strata.engine.questions import read_questions
from strata.engine.safetensors_file import TensorReader
from strata.engine.score_config import ScoreConfig
from strata.engine.sweep import SweepJob, plan_lanes
from strata.engine.templates import load_template
from strata.engine.types import InputError, Prompt, Question, RunWarnings
from strata.engine.vocabulary import vocabulary_projection


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
    """A checked and planned job."""

    config: ScoreConfig
    head: str
    template_name: str
    prompts: list[Prompt]
    targets: TargetTable
    sweep: SweepJob
    rates: MachineRates
    budgets: Budgets

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
    with timer.phase("read input"):
        _check_out(config.out)
        questions = read_questions(
            config.questions, context_column=config.context_column, limit=config.limit, warnings=warnings
        )
        checkpoint = open_checkpoint(config.model)
        adapters = _read_adapters(config, checkpoint)
        head = choose_head(config.head, checkpoint, adapters[0].score if adapters else None)
    with timer.phase("tokenize"):
        prompts, template_name = _render(config, head, questions, checkpoint, warnings)
    with timer.phase("plan"):
        tree = build_prefix_tree([branch.token_ids for prompt in prompts for branch in prompt.branches])
        targets = build_target_table(prompts, tree)
        sweep, rates, budgets = plan_job(config, head, checkpoint, adapters, tree, targets)
    _warn_of_rope(checkpoint, tree, warnings)
    return ScoringJob(
        config=config,
        head=head,
        template_name=template_name,
        prompts=prompts,
        targets=targets,
        sweep=sweep,
        rates=rates,
        budgets=budgets,
    )


def describe_plan(job: ScoringJob) -> dict[str, object]:
    """The plan as run.json keeps it."""
    return {
        **asdict(job.plan),
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
    vocabulary = checkpoint.require("embed_tokens.weight").parts[0][0].shape[0]
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


def plan_job(
    config: ScoreConfig,
    head: str,
    checkpoint: Checkpoint,
    adapters: tuple[Adapter, ...],
    tree: PrefixTree,
    targets: TargetTable,
) -> tuple[SweepJob, MachineRates, Budgets]:
    """Plans the sweep of a tree: the job, and the rates and budgets it was planned with."""
    devices = resolve_devices(config.devices)
    dtype = resolve_dtype(config.dtype, checkpoint.stored_dtype, devices)
    decoder = build_decoder(checkpoint.config)
    shapes = [decoder.layer_shapes(layer) for layer in range(checkpoint.num_layers)]
    loader = LayerLoader(checkpoint, shapes, dtype, TensorReader())
    for adapter in adapters:
        for layer, layer_shapes in enumerate(shapes):
            check_shapes(adapter, layer_shapes, layer_index=layer)
    costs = model_costs(checkpoint, decoder, loader, dtype)
    work = measure_workload(
        costs,
        token_ids=tree.token_ids,
        position_ids=tree.position_ids,
        scored=targets.scored,
        num_members=max(1, len(adapters)),
        output_bytes=_output_bytes(head, checkpoint, adapters, targets),
        embedding_row_bytes=embedding_bytes(checkpoint, 1),
    )
    budgets = Budgets(
        device_bytes=device_budget_bytes(devices, config.memory_gib),
        host_bytes=host_budget_bytes(config.host_memory_gib),
    )
    first_file = checkpoint.require("norm.weight").parts[0][0].file
    rates = measure_rates(devices, dtype, checkpoint.config.hidden_size, first_file)
    name = next(name for name, known in DTYPES.items() if known is dtype)
    overrides = PlanOverrides(
        micro_batch_tokens=config.micro_batch_tokens,
        num_groups=config.num_groups,
        resident_layers=config.resident_layers,
        hidden_store=config.hidden_store,
    )
    plan = plan_sweep(
        costs, work, devices=devices, dtype=name, budgets=budgets, rates=rates, overrides=overrides
    )
    job = SweepJob(checkpoint=checkpoint, tree=tree, scored=targets.scored, plan=plan, adapters=adapters)
    return settle_bytes(job, sum(costs.stored_bytes), costs.stored_bytes, work.output_bytes), rates, budgets


def settle_bytes(
    job: SweepJob, layers_bytes: int, layer_bytes: tuple[int, ...], output_bytes: int
) -> SweepJob:
    """The job with the exact number of groups and of bytes that its lanes will read."""
    groups = plan_lanes(job.tree, job.scored, job.plan)
    embedding = sum(embedding_bytes(job.checkpoint, len(tokens_in_use(job.tree, lanes))) for lanes in groups)
    resident = set(job.plan.resident_layers)
    again = sum(size for layer, size in enumerate(layer_bytes) if layer not in resident)
    total = layers_bytes + (len(groups) - 1) * again + embedding + output_bytes
    return replace(job, plan=replace(job.plan, num_groups=len(groups), bytes_read=total))


def _output_bytes(
    head: str, checkpoint: Checkpoint, adapters: tuple[Adapter, ...], targets: TargetTable
) -> int:
    """Bytes of the final norm and of what the head reads."""
    norm = sum(source.num_bytes for name, source in checkpoint.weights.items() if name.startswith("norm."))
    if head in CLASSIFIER_HEADS:
        uses_own = not adapters or adapters[0].score is None
        return norm + (checkpoint.require("score.weight").num_bytes if uses_own else 0)
    projection = vocabulary_projection(checkpoint)
    members = max(1, len(adapters))
    return norm + members * projection.bytes_needed(
        targets.token_ids, normalized=targets.needs_normalization(head)
    )


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
