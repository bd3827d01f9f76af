"""Prepares a scoring job: reads and checks all input, renders prompts, builds the tree, plans the sweep.

Flow: ScoreConfig -> questions, checkpoint headers, adapters -> head and template -> prompts -> prefix tree
and targets -> plan. Reads no weights; whatever is wrong with the input is found here.
"""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path

from strata.engine.adapters.adapter_file import read_adapter
from strata.engine.adapters.lora import Adapter
from strata.engine.config import ScoreConfig
from strata.engine.heads.registry import choose_head
from strata.engine.model.families import LENGTH_DEPENDENT_ROPE, rope_type
from strata.engine.plan.sweep_job import plan_job
from strata.engine.plan.sweep_plan import SweepPlan
from strata.engine.prompts.render import render_prompts
from strata.engine.prompts.templates import load_template
from strata.engine.prompts.tokenizer import read_tokenizer
from strata.engine.questions.question_file import read_questions
from strata.engine.results.partial_scores import PartialScores, fingerprint_job
from strata.engine.results.phases import PhaseTimer
from strata.engine.scorer import ScoringJob
from strata.engine.tree.prefix_tree import PrefixTree, build_prefix_tree
from strata.engine.tree.targets import build_target_table
from strata.engine.types import InputError, Prompt, Question, QuestionScores, RunWarnings
from strata.engine.weights.checkpoint import Checkpoint, open_checkpoint
from strata.engine.weights.checksums import read_checksums
from strata.engine.weights.formats.registry import ignored_settings


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
    widths = {adapter.score.shape[1]: adapter.name for adapter in adapters if adapter.score is not None}
    if len(widths) > 1:
        told = ", ".join(f"{name!r} of {width}" for width, name in sorted(widths.items()))
        raise InputError(f"--adapter: score heads of different widths ({told}); expected the same of all")
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
