"""`strata pack`: converts a checkpoint and prints what came out."""

from __future__ import annotations

import tempfile
from pathlib import Path

from strata.engine.pack.calibrated import Calibration
from strata.engine.pack.config import GIB, PackConfig
from strata.engine.pack.pack import PackReport, interrupted_line, pack_checkpoint

MIB = 1 << 20
EXPERTS_NOTES = {
    "int8": "packed one by one, which strata reads and transformers 5 does not",
    "nf4": "left plain, since transformers 5 merges them and reads them in no other way beside NF4",
}


def run_pack(config: PackConfig) -> int:
    """Packs and prints a summary. Returns the exit status."""
    config.check()
    try:
        report = pack_checkpoint(config, calibrate(config))
    except KeyboardInterrupt as interrupt:
        raise KeyboardInterrupt(interrupted_line(config.out) or "") from interrupt
    for line in describe_pack(report, config):
        print(line)
    return 0


def calibrate(config: PackConfig) -> Calibration:
    """What --calibrate asks for: a sweep of its questions; nothing without it."""
    if config.calibrate is None:
        return Calibration()
    from strata.engine.smoothquant.config import CalibrationConfig
    from strata.engine.smoothquant.norm_maxima import calibrate_on_questions

    asked = CalibrationConfig(questions=config.calibrate, num_questions=config.calibrate_questions)
    with tempfile.TemporaryDirectory() as folder:
        found = calibrate_on_questions(
            config.model, asked, Path(folder), with_moments=config.format == "int8"
        )
    told = (
        f"{len(found.norms)} norms (alpha {config.smoothing_alpha or 'none'}) and "
        f"{len(found.inputs)} inputs of linear layers"
    )
    print(f"calibrated {told} on {config.calibrate}")
    return found


def describe_pack(report: PackReport, config: PackConfig) -> list[str]:
    """What a user wants to know of a finished pack, a line each."""
    plan = report.plan
    lines = [f"damaged, so packed again: {reason}" for reason in report.repaired]
    if report.num_shards_kept:
        lines.append(f"{report.num_shards_kept} of {len(plan.shards)} file(s) were finished before")
    if plan.num_packed:
        lines.append(f"{plan.num_packed} matrices of decoder layers are {config.format}; all else is plain")
    if plan.num_experts and config.format in EXPERTS_NOTES:
        lines.append(f"{plan.num_experts} matrices of experts: {EXPERTS_NOTES[config.format]}")
    source_bytes, packed_bytes = plan.num_source_bytes, plan.num_packed_bytes
    speed = report.num_bytes_read / report.seconds / 1e6
    lines.append(
        f"{format_size(source_bytes)} -> {format_size(packed_bytes)} ({packed_bytes / source_bytes:.2f}x) in "
        f"{report.seconds:.1f} s, {speed:,.0f} MB/s read{', verified' if config.verify else ''}: {report.out}"
    )
    return lines


def format_size(num_bytes: int) -> str:
    """GiB, or MiB below a quarter of one."""
    return f"{num_bytes / GIB:.2f} GiB" if num_bytes >= GIB / 4 else f"{num_bytes / MIB:.1f} MiB"
