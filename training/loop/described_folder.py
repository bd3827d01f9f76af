"""What lies beside trained weights: strata.json, as which they are to be asked, and a README of our own.

PEFT and transformers leave a README that says "More Information Needed"; ours says what is known of the run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from strata.engine.adapters.trained_settings import TrainedSettings, write_trained_settings
from strata.engine.files import write_text_atomically
from strata.engine.heads.loglik import DEFAULT_NORMALIZATION
from strata.training.config import TrainConfig
from strata.training.loop.evaluation import evaluations_of
from strata.training.tasks import HEADS

CARD_NAME = "README.md"
MEASURES = {"map_at_3": "MAP@3", "accuracy": "accuracy", "macro_f1": "macro F1", "loss": "loss"}
MEASURES |= {"perplexity": "perplexity"}
GUESSES = {
    "uniform_map_at_3": "a uniform guess has MAP@3",
    "longest_option_map_at_3": "the longest option",
    "commonest_label_accuracy": "the commonest label has accuracy",
}


def describe_trained(
    folder: Path, config: TrainConfig, plan: Mapping[str, Any], lines: Sequence[dict], step: int
) -> None:
    """Leaves README.md and, beside an adapter, strata.json.

    Args:
        folder: holds what was trained.
        config: the run's settings.
        plan: `Trainer.describe()`.
        lines: of log.jsonl, evaluations among them.
        step: after which the weights are.

    Raises:
        OutputError: a file cannot be written.
    """
    if not config.full:
        template = None if config.template is None else Path(config.template)
        is_file = template is not None and template.is_file()
        write_trained_settings(folder, trained_settings(config), template if is_file else None)
    write_text_atomically(folder / CARD_NAME, render_card(config, plan, lines, step))


def trained_settings(config: TrainConfig) -> TrainedSettings:
    """How questions were asked; a template that is a file is not named."""
    head = HEADS.get(config.task)
    is_file = config.template is not None and Path(config.template).is_file()
    return TrainedSettings(
        head=head,
        template=None if is_file else config.template,
        max_tokens=config.max_tokens,
        normalize=DEFAULT_NORMALIZATION if head == "loglik" else None,
        chat=config.chat,
        system=config.system,
        debias=config.debias,
    )


def render_card(config: TrainConfig, plan: Mapping[str, Any], lines: Sequence[dict], step: int) -> str:
    """The README: front matter as the Hugging Face hub has it, facts, figures and how to use it."""
    what = "model" if config.full else "adapter"
    library = "transformers" if config.full else "peft"
    return "\n".join(
        [
            "---",
            f"base_model: {config.model}",
            f"library_name: {library}",
            "tags: [strata, multiple-choice]",
            "---",
            "",
            f"# {config.out.resolve().name}",
            "",
            f"Trained by `strata train` from {config.model.resolve().name}.",
            "",
            "| | |",
            "|---|---|",
            *(f"| {name} | {text} |" for name, text in _facts(config, plan, step)),
            "",
            *_figures(lines),
            "    strata score --model BASE --questions test.csv --out runs/scored --adapter THIS_FOLDER"
            if what == "adapter"
            else "    strata score --model THIS_FOLDER --questions test.csv --out runs/scored",
            "",
        ]
    )


def _facts(config: TrainConfig, plan: Mapping[str, Any], step: int) -> Iterator[tuple[str, str]]:
    data = config.questions or config.passages
    yield "base model", str(config.model)
    yield "data", f"{None if data is None else data.name}, {plan['num_train']:,} example(s)"
    yield "task", config.task
    yield "steps", f"{step:,} of {plan['num_steps']:,}, {config.batch_questions} example(s) each"
    if config.full:
        yield "trained", f"all weights, {plan['trained_parameters']:,}"
    else:
        targets = ", ".join(config.lora_targets)
        yield "LoRA", f"rank {config.lora_r}, alpha {config.lora_alpha:g}, on {targets}"
        yield "trained parameters", f"{plan['trained_parameters']:,}"
    yield "learning rate", f"{config.learning_rate:g}, {config.schedule}"
    yield "dtype", str(plan["dtype"])
    for name, value in trained_settings(config).differing().items():
        yield name.replace("_", " "), str(value)
    if config.shots is not None:
        yield "shots", f"the first {config.num_shots} of {config.shots.name}"


def _figures(lines: Sequence[dict]) -> Iterator[str]:
    """A table of the first and the last evaluation."""
    found = evaluations_of(lines)
    if not found:
        return
    first, last = found[0], found[-1]
    before = first if first["step"] == 0 and len(found) > 1 else {}
    yield f"On {last['num_examples']:,} validation example(s), after step {last['step']}:"
    yield ""
    yield "| | before training | after |"
    yield "|---|---|---|"
    for name, label in MEASURES.items():
        if name in last:
            was = f"{before[name]:.3f}" if name in before else ""
            yield f"| {label} | {was} | {last[name]:.3f} |"
    yield ""
    guesses = last.get("heuristics") or {}
    if told := [f"{label} {guesses[name]:.3f}" for name, label in GUESSES.items() if name in guesses]:
        yield f"Without a model: {', '.join(told)}."
        yield ""
