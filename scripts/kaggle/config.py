"""What `strata kaggle` can be told. Imports nothing heavy: --help is quick."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from strata.engine.deadline import parse_duration_s
from strata.engine.types import InputError
from strata.scripts.doctor.extras import USES

_NAME = re.compile(r"[a-z0-9][a-z0-9-]*", re.ASCII | re.IGNORECASE)
SLUG_CHARACTERS = range(5, 51)
"""How long a kernel's title, and a data set's, may be."""


@dataclass(frozen=True, kw_only=True)
class KaggleSettings:
    """Settings of a kernel that is written."""

    config: Path
    """YAML file of `strata run` (docs/run.md); its paths may be those of Kaggle or your own."""
    owner: str
    """Your name on Kaggle, as in its addresses."""
    out: Path = Path("runs/kaggle")
    """Folder for all that is to be uploaded, and README.md on how."""
    name: str = "strata-run"
    """What the kernel is called; its data set is called NAME-wheels."""
    questions: str = "test.csv"
    """The question file, looked up by name below /kaggle/input."""
    competition: str | None = None
    """The competition whose files are mounted, by its name in addresses."""
    dataset: tuple[str, ...] = ()
    """A data set to mount, OWNER/NAME; repeat for several. Those that CONFIG's paths name are found."""
    model: tuple[str, ...] = ()
    """A model to mount, OWNER/MODEL/FRAMEWORK/VARIATION/VERSION; repeat for several."""
    deadline: str = "8.5h"
    """What the whole notebook may take."""
    commit_deadline: str = "6m"
    """The same where only the public stub of a competition is there."""
    extra: tuple[str, ...] = ()
    """Ship the packages of this extra too, such as quant; those that CONFIG needs are found."""
    wheels: Path | None = None
    """Folder of wheels to take instead of asking a package index."""
    wheel: Path | None = None
    """strata's own wheel; built from the source folder where there is one."""
    image: Path | None = None
    """What `pip freeze` prints on a kernel of today, where that is no longer what strata knows."""
    acceptance: bool = False
    """Let the notebook also run `strata bench gpu`."""
    overwrite: bool = False
    """Replace what is in --out."""

    @property
    def wheels_name(self) -> str:
        """What the data set of wheels is called."""
        return f"{self.name}-wheels"

    def check(self) -> None:
        """Raises InputError when a setting means nothing."""
        for flag, text in (("--owner", self.owner), ("--name", self.name)):
            if not _NAME.fullmatch(text):
                raise InputError(
                    f"{flag}: {text!r}; expected letters, digits and -, as in Kaggle's addresses"
                )
        if len(self.name) not in SLUG_CHARACTERS or len(self.wheels_name) not in SLUG_CHARACTERS:
            raise InputError(f"--name: {self.name!r} has {len(self.name)} characters; expected 5 to 43")
        for text in self.dataset:
            if text.count("/") != 1:
                raise InputError(f"--dataset: {text!r}; expected OWNER/NAME")
        for text in self.model:
            if text.count("/") != 4:
                raise InputError(f"--model: {text!r}; expected OWNER/MODEL/FRAMEWORK/VARIATION/VERSION")
        for extra in self.extra:
            if extra not in USES:
                known = ", ".join(filter(None, USES))
                raise InputError(f"--extra: {extra!r} is unknown; expected one of {known}")
        # Before a folder is replaced or a wheel is built, which takes a while.
        if self.wheels is not None and not self.wheels.is_dir():
            raise InputError(f"--wheels: {self.wheels} is not there; expected a folder of wheels")
        for flag, file in (("--wheel", self.wheel), ("--image", self.image)):
            if file is not None and not file.is_file():
                raise InputError(f"{flag}: {file} is not there; expected a file")
        parse_duration_s("--deadline", self.deadline)
        parse_duration_s("--commit-deadline", self.commit_deadline)
