"""What a user should know of a decoder's job: what is not used, or went otherwise than planned."""

from __future__ import annotations

from strata.engine.adapters.adapter_config import CONFIG_NAME
from strata.engine.jobs.job import Session
from strata.engine.model.families import LENGTH_DEPENDENT_ROPE, rope_type
from strata.engine.plan.sweep_job import SweepJob
from strata.engine.weights.checkpoint import Checkpoint

MAX_NAMED = 4


def warn_of_plan(sweep: SweepJob, session: Session) -> None:
    """Says which of the user's settings the job does not honour."""
    overrides, say = session.overrides, session.warnings.say
    num_layers, config = sweep.model.checkpoint.num_layers, sweep.model.checkpoint.config
    longest = int(sweep.tree.position_ids.max()) + 1
    supported = getattr(config, "max_position_embeddings", longest)
    original = getattr(config, "original_max_position_embeddings", None) or supported
    if rope_type(config) in LENGTH_DEPENDENT_ROPE and longest > original:
        say(
            f"rotary scaling {rope_type(config)!r} depends on length: the whole job uses the "
            f"setting of its longest prompt, {longest} tokens "
            f"(a run of each prompt alone would switch at {original})"
        )
    if overrides.num_groups is not None and overrides.num_groups != sweep.plan.num_groups:
        say(f"--num-groups {overrides.num_groups}: the job has prompts for {sweep.plan.num_groups} only")
    if overrides.resident_layers is not None and overrides.resident_layers > num_layers:
        say(f"--resident-layers {overrides.resident_layers}: the model has {num_layers} layers")


def left_aside(checkpoint: Checkpoint) -> list[str]:
    """What lies in the checkpoint's folder and is not used, a line each."""
    lines = []
    if checkpoint.unused:
        shown = ", ".join(checkpoint.unused[:MAX_NAMED])
        more = f" and {len(checkpoint.unused) - MAX_NAMED} more" if len(checkpoint.unused) > MAX_NAMED else ""
        lines.append(
            f"{checkpoint.path}: {len(checkpoint.unused)} stored tensor(s) are not used, as "
            f"{checkpoint.config.model_type!r} has no place for them: {shown}{more}"
        )
    if (checkpoint.path / CONFIG_NAME).is_file():
        lines.append(
            f"{checkpoint.path / CONFIG_NAME}: an adapter lies beside the full model and is not applied; "
            f"--adapter {checkpoint.path} applies it"
        )
    return lines
