"""The wheels that strata needs on a kernel and Kaggle's image lacks, for Python 3.12 on x86-64 Linux.

Flow: our wheel's requirements (and those of extras) -> one that the image meets is left alone, with all that
it brings; any other is downloaded alone, without what it brings, and its own requirements join the queue. So
nothing that the image has (torch least of all) is downloaded or replaced unless a requirement demands it.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from collections import deque
from collections.abc import Mapping, Sequence
from email.parser import BytesHeaderParser
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from strata.engine.files import read_utf8
from strata.engine.types import InputError

IMAGE, PINS = Path(__file__).with_name("image.txt"), Path(__file__).with_name("wheels.txt")
PYTHON = "3.12"
ENVIRONMENT = {
    "implementation_name": "cpython",
    "implementation_version": "3.12.0",
    "os_name": "posix",
    "platform_machine": "x86_64",
    "platform_python_implementation": "CPython",
    "platform_system": "Linux",
    "python_full_version": "3.12.0",
    "python_version": PYTHON,
    "sys_platform": "linux",
}
"""What markers are judged by: a kernel's interpreter, not this one."""
GLIBC_MINORS = (35, 34, 31, 28, 27, 26, 24, 17)
"""manylinux_2_N that the image's glibc 2.35 runs."""
Image = Mapping[str, Version]


def read_image(path: Path | None) -> dict[str, Version]:
    """Versions by name from what `pip freeze` printed; those that strata knows by default.

    Raises:
        InputError: not such a file.
    """
    path = path or IMAGE
    versions: dict[str, Version] = {}
    for number, line in enumerate(read_utf8(path).splitlines(), start=1):
        text = line.partition("#")[0].strip()
        # `name @ address`: pip freeze tells no version of these.
        if not text or " @ " in text:
            continue
        name, _, version = text.partition("==")
        try:
            versions[canonicalize_name(name)] = Version(version)
        except InvalidVersion:
            raise InputError(
                f"{path}:{number}: {text!r}; expected NAME==VERSION, as of `pip freeze`"
            ) from None
    return versions


def fill_wheelhouse(
    ours: Path, extras: Sequence[str], folder: Path, image: Image, wheels: Path | None = None
) -> list[Path]:
    """Puts our wheel and all that the image lacks into a folder.

    Args:
        ours: strata's own wheel.
        extras: of ours that are wanted.
        folder: which must be there.
        image: versions by name.
        wheels: take other wheels from this folder instead of asking a package index.

    Returns:
        The wheels, ours first.

    Raises:
        InputError: a wheel is not to be had, or is none.
    """
    mine = Path(shutil.copy(ours, folder / ours.name))
    found, done = [mine], {(canonicalize_name("strata-score"), frozenset(extras))}
    queue = deque(requirements_of(mine, extras))
    while queue:
        wanted = queue.popleft()
        key = (canonicalize_name(wanted.name), frozenset(wanted.extras))
        if key in done or is_met(wanted, image):
            continue
        done.add(key)
        wheel = download_wheel(wanted, folder, wheels)
        if wheel not in found:
            found.append(wheel)
        queue.extend(requirements_of(wheel, sorted(wanted.extras)))
    return found


def is_met(wanted: Requirement, image: Image) -> bool:
    """Whether the image has what a requirement asks for."""
    version = image.get(canonicalize_name(wanted.name))
    return version is not None and wanted.specifier.contains(version, prereleases=True)


def requirements_of(wheel: Path, extras: Sequence[str]) -> list[Requirement]:
    """What a wheel asks for on a kernel, with some of its extras.

    Raises:
        InputError: not a wheel.
    """
    try:
        with zipfile.ZipFile(wheel) as opened:
            name = next(name for name in opened.namelist() if name.endswith(".dist-info/METADATA"))
            lines = BytesHeaderParser().parsebytes(opened.read(name)).get_all("Requires-Dist") or []
        parsed = [Requirement(line) for line in lines]
    except (OSError, zipfile.BadZipFile, StopIteration, InvalidRequirement) as error:
        raise InputError(f"{wheel}: not a wheel ({error or 'no METADATA'}); expected a .whl file") from None
    return [one for one in parsed if _applies(one, extras)]


def download_wheel(wanted: Requirement, folder: Path, wheels: Path | None) -> Path:
    """The wheel of one requirement, without what it brings, for a kernel's interpreter.

    Raises:
        InputError: it is not to be had.
    """
    before = set(folder.glob("*.whl"))
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", "--implementation=cp", f"--python-version={PYTHON}"]
    for platform in [f"manylinux_2_{minor}_x86_64" for minor in GLIBC_MINORS] + ["manylinux2014_x86_64"]:
        command += ["--platform", platform]
    if wheels is not None:
        command += ["--no-index", "--find-links", str(wheels)]
    command += ["--constraint", str(PINS), "--dest", str(folder), f"{wanted.name}{wanted.specifier}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["pip said nothing"])[-1]
        place = "a package index" if wheels is None else str(wheels)
        raise InputError(
            f"{wanted.name}{wanted.specifier}: no wheel for Python {PYTHON} from {place}: {last}"
        )
    new = set(folder.glob("*.whl")) - before
    name = canonicalize_name(wanted.name)
    return next(iter(new or (path for path in before if _name_of(path) == name)))


def _name_of(wheel: Path) -> str:
    return canonicalize_name(wheel.name.partition("-")[0])


def _applies(requirement: Requirement, extras: Sequence[str]) -> bool:
    marker = requirement.marker
    if marker is None:
        return True
    return any(marker.evaluate({**ENVIRONMENT, "extra": extra}) for extra in ("", *extras))
