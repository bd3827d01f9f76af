"""`strata pack`: a checkpoint in another storage format, one weight in memory at a time.

Flow: headers -> plan (every file's size is known) -> free disk -> file after file, each read, encoded,
written under a temporary name, flushed, renamed and noted in the journal -> small files, config -> the folder
gets its name. What is interrupted is gone on with by the same call. Knows nothing of how formats lie on disk.
"""

from __future__ import annotations

import errno
import functools
import json
import shutil
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

from strata.engine.files import OutputError, write_atomically, write_text_atomically
from strata.engine.folder_lock import lock_folder
from strata.engine.pack.calibrated import Calibration
from strata.engine.pack.config import PackConfig
from strata.engine.pack.encodings import one_torch_thread
from strata.engine.pack.journal import Digests, PartialFolder, partial_path, refuse_occupied
from strata.engine.pack.layout import UNCHANGED, PackPlan, Shard, packed_weights, plan_pack
from strata.engine.pack.safetensors_writer import SafetensorsWriter
from strata.engine.pack.smoothing import Smoothing, find_outlier_weights, plan_smoothing
from strata.engine.pack.source import source_files, write_tokenizer
from strata.engine.progress import progress_bar
from strata.engine.results.machine_facts import package_version
from strata.engine.types import InputError
from strata.engine.weights.checkpoint import Checkpoint, open_checkpoint
from strata.engine.weights.checkpoint_folder import CONFIG_FILE, INDEX_FILE
from strata.engine.weights.checksums import Checksums, digest_of, write_checksums
from strata.engine.weights.first_layers import count_layers, keep_layers
from strata.engine.weights.safetensors_file import read_header
from strata.engine.weights.tensor_reader import TensorReader

UNCALIBRATED = Calibration()
SPARE_BYTES = 1 << 20
"""Room for the journal, the index and the checksums' own growth, beyond what is counted."""
BYTES_PER_ENTRY = 400
"""Roughly what the journal, the checksums and the index say of one tensor."""


@dataclass(frozen=True, kw_only=True)
class PackReport:
    """What a pack did.

    Attributes:
        out: the folder it left.
        plan: what is in it.
        num_bytes_read: of weights, in this call.
        num_shards_kept: files that an earlier call had finished.
        repaired: one line for each of those that was damaged and packed again.
        seconds: wall time of this call.
    """

    out: Path
    plan: PackPlan
    num_bytes_read: int
    num_shards_kept: int
    repaired: tuple[str, ...]
    seconds: float


def pack_checkpoint(config: PackConfig, calibrated: Calibration = UNCALIBRATED) -> PackReport:
    """Converts a checkpoint; `config.out` is whole afterwards, or absent.

    Takes the memory of the largest weight as stored and as written (and decoded, when both are quantised) and
    some 20 MB a core.

    Args:
        config: what to convert, and into what.
        calibrated: what `config.calibrate` asks to find out, nothing where it does not.

    Raises:
        InputError: a checkpoint that cannot be read or converted, an output folder that is not empty or in
            use by another run, other settings than an unfinished pack's, or too little free disk.
        OutputError: the system refuses to write; OUT.partial keeps what is finished.
    """
    begin = perf_counter()
    config.check()
    out = config.out.resolve()
    refuse_occupied(out)
    checkpoint = open_checkpoint(config.model)
    if config.layers is not None:
        checkpoint = keep_layers(checkpoint, count_layers(config.layers, checkpoint.num_layers))
    smoothing = _smooth(checkpoint, config, calibrated) if config.calibrate else UNCHANGED
    settings = _settings_of(config) | ({"smoothing": smoothing.digest} if config.calibrate else {})
    with lock_folder(out, "--out", beside=True):
        return _pack(plan_pack(checkpoint, config, smoothing), out, config, settings, begin)


def _smooth(checkpoint: Checkpoint, config: PackConfig, calibrated: Calibration) -> Smoothing:
    smoothing = plan_smoothing(checkpoint, calibrated, config.smoothing_alpha)
    if config.format != "int8":
        return smoothing
    with closing(TensorReader()) as reader:
        plain = find_outlier_weights(packed_weights(checkpoint, smoothing, config.plain), reader)
    return replace(smoothing, plain=plain)


def _pack(
    plan: PackPlan, out: Path, config: PackConfig, settings: dict[str, Any], begin: float
) -> PackReport:
    with closing(PartialFolder(out, settings)) as partial, closing(TensorReader()) as reader:
        repaired = _drop_damaged(partial, plan, verify=config.verify)
        num_kept = len(partial.finished)
        partial.require_room(missing_bytes(partial, plan))
        try:
            partial.begin()
            with (
                one_torch_thread(),
                progress_bar("packing", plan.num_source_bytes, shown=config.progress) as advance,
            ):
                _write_shards(partial, plan, reader, advance, verify=config.verify)
            _write_small_files(partial, plan, config.model)
            partial.publish(out)
        except InputError:
            partial.discard()
            raise
        except OSError as error:
            raise _told_how_to_go_on(error, partial, plan) from error
        return PackReport(
            out=out,
            plan=plan,
            num_bytes_read=reader.num_bytes_read,
            num_shards_kept=num_kept,
            repaired=tuple(repaired),
            seconds=perf_counter() - begin,
        )


def verify_shard(file: Path, digests: Digests) -> None:
    """Reads a file back and compares every tensor with its checksum. Takes 8 MiB.

    Raises:
        InputError: the file is truncated, lacks a tensor, or one is damaged; names both.
    """
    stored = read_header(file)
    absent = sorted(digests.keys() - stored.keys())
    if absent:
        raise InputError(f"{file}: tensor {absent[0]} is missing")
    checksums = Checksums(folder=file.parent, tensors={file.name: digests})
    with closing(TensorReader(checksums=checksums)) as reader:
        for name in digests:
            reader.verify(stored[name])


def missing_bytes(partial: PartialFolder, plan: PackPlan) -> int:
    """Disk that the rest of a pack takes, with a little to spare."""
    unfinished = [shard for shard in plan.shards if shard.name not in partial.finished]
    num_tensors = sum(len(shard.layout.specs) for shard in plan.shards)
    return (
        sum(shard.layout.num_bytes for shard in unfinished)
        + sum(file.stat().st_size for file in plan.copied)
        + num_tensors * BYTES_PER_ENTRY
        + SPARE_BYTES
    )


def _settings_of(config: PackConfig) -> dict[str, Any]:
    """All that the output depends on: two calls that agree here write the same bytes."""
    stats = {file.name: file.stat() for file in source_files(config.model)}
    return {
        "source": str(config.model.resolve()),
        "format": config.format,
        "double_quant": config.double_quant if config.format == "nf4" else None,
        "shard_gib": config.shard_gib,
        "layers": config.layers,
        **({"plain": sorted(config.plain)} if config.plain else {}),
        "strata_version": package_version("strata-score"),
        **{f"size and time of {name}": [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()},
    }


def _drop_damaged(partial: PartialFolder, plan: PackPlan, *, verify: bool) -> list[str]:
    """Forgets finished files that are not as they were left; returns what was wrong."""
    sizes = {shard.name: shard.layout.num_bytes for shard in plan.shards}
    wrong: list[str] = []
    for name, digests in list(partial.finished.items()):
        file = partial.path / name
        try:
            if not file.is_file() or file.stat().st_size != sizes[name]:
                raise InputError(f"{file}: missing or of another size than it was left")
            if verify:
                verify_shard(file, digests)
        except InputError as error:
            wrong.append(str(error))
            partial.forget(name)
    return wrong


def _write_shards(
    partial: PartialFolder,
    plan: PackPlan,
    reader: TensorReader,
    advance: Callable[[int], None],
    *,
    verify: bool,
) -> None:
    for shard in plan.shards:
        if shard.name in partial.finished:
            advance(shard.source_bytes)
            continue
        digests = _write_shard(partial.path / shard.name, shard, reader, advance)
        if verify:
            _read_back(partial.path / shard.name, digests)
        partial.finish(shard.name, digests)


def _write_shard(file: Path, shard: Shard, reader: TensorReader, advance: Callable[[int], None]) -> Digests:
    with SafetensorsWriter(file, shard.layout) as writer:
        for encoding in shard.encodings:
            parts = {role: reader.read(part) for role, part in encoding.weight.parts.items()}
            for spec, tensor in zip(encoding.specs, encoding.encode(parts), strict=True):
                writer.write(spec.name, tensor)
            advance(encoding.weight.num_bytes)
            # The next weight is read before these names are bound again.
            del parts, tensor
    return writer.digests


def _read_back(file: Path, digests: Digests) -> None:
    """Verifies a file just written; one that the disk does not give back is no fault of the user's."""
    try:
        verify_shard(file, digests)
    except InputError as error:
        file.unlink()
        raise OutputError(errno.EIO, f"read back and compared: {error}", str(file)) from error


def _write_small_files(partial: PartialFolder, plan: PackPlan, model: Path) -> None:
    """Everything but the weights; the checksums last."""
    write_tokenizer(model, partial.path)
    for source in plan.copied:
        write_atomically(partial.path / source.name, functools.partial(shutil.copyfile, source))
    if plan.index is not None:
        _write_json(partial.path / INDEX_FILE, plan.index)
    _write_json(partial.path / CONFIG_FILE, plan.config)
    config = {CONFIG_FILE: digest_of((partial.path / CONFIG_FILE).read_bytes())}
    write_checksums(partial.path, partial.finished, config)


def _write_json(file: Path, content: Mapping[str, Any]) -> None:
    write_text_atomically(file, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def _told_how_to_go_on(error: OSError, partial: PartialFolder, plan: PackPlan) -> OSError:
    kept = (
        f"{partial.path} keeps {len(partial.finished)} of {len(plan.shards)} file(s), and the same command "
        "goes on from there"
    )
    reason = f"{error.strerror or error}; {kept}"
    if isinstance(error, OutputError):
        return OutputError(error.errno, reason, error.filename)
    return OSError(error.errno, reason, error.filename)


def interrupted_line(out: Path) -> str | None:
    """What an interrupted pack leaves, for its user; None when that is nothing."""
    partial = partial_path(out)
    if not partial.is_dir():
        return None
    return f"{partial} keeps the finished files, and the same command goes on from there"
