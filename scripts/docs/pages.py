"""The pages of docs/ that are made from the sources: `python -m strata.scripts.docs.pages`."""

from __future__ import annotations

from pathlib import Path

from strata.engine.files import write_text_atomically
from strata.scripts.docs.flag_tables import flags_page
from strata.scripts.docs.plan_tables import plans_page

DOCS = Path("docs")
PAGES = {"flags.md": flags_page, "plans.md": plans_page}


def main() -> None:
    """Writes them, in the repository's root."""
    for name, make in PAGES.items():
        write_text_atomically(DOCS / name, make())


if __name__ == "__main__":
    main()
