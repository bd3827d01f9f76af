"""The commands that the documentation shows, and the files they are given in tests."""

from __future__ import annotations

import gzip
import json
import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from strata.scripts.cli import main

from ..label_classifiers import LABELS, build_label_classifier, train_by_chance
from ..sample_questions import QUESTIONS, write_jsonl
from ..tiny_gguf import write_tiny_gguf

ROOT = Path(__file__).parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "retrieval/README.md", "training/README.md", "SECURITY.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
PROGRAMS = (
    "strata",
    "pip",
    "make",
    "python3",
    ".venv/bin/strata",
    ".venv/bin/pip",
    ".venv/bin/python",
    "ray",
)
CHAT_TEMPLATE = "{% for message in messages %}{{ message.content }} {% endfor %}"
MINE = (
    "{{ context }} {{ prompt }} {% for letter, text in options %}{{ letter }}. {{ text }} {% endfor %}Answer:"
)
PIPELINE = """
members:
  plain: {model: DIR, head: yes-no}
  letters: {model: DIR, head: letters}
"""


@dataclass(frozen=True)
class Command:
    """A command as a page shows it, without what it says of optional parts."""

    page: str
    words: tuple[str, ...]

    def __str__(self) -> str:
        return shlex.join(self.words)


def commands_of(page: Path) -> Iterator[Command]:
    """Commands of a page's code blocks; of optional parts in brackets, once without and once with them."""
    name = page.relative_to(ROOT).as_posix()
    for line in _code_lines(page.read_text(encoding="utf-8")):
        text = line.split("  #")[0].strip()
        if text.split(" ")[0] not in PROGRAMS:
            continue
        for shown in dict.fromkeys(
            (re.sub(r" \[--[^\]]*\]", "", text), re.sub(r"\[(--[^\]]*)\]", r"\1", text))
        ):
            yield Command(name, tuple(shlex.split(shown)))


def _code_lines(text: str) -> Iterator[str]:
    fenced = False
    for line in text.split("\n"):
        if line.startswith("```"):
            fenced = not fenced
        elif fenced or line.startswith("    "):
            yield line


def all_commands() -> list[Command]:
    """Those of all pages, each once."""
    return list({command.words: command for page in PAGES for command in commands_of(page)}.values())


def make_workspace(folder: Path, checkpoint: Callable[..., Path]) -> None:
    """Writes every file that the commands name, small, into a folder."""
    shutil.copytree(checkpoint("llama-gqa"), folder / "DIR")
    (folder / "DIR" / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    for seed, name in enumerate(("lora-a", "lora-b", "LORA")):
        _write_adapter(folder / "DIR", folder / name, seed)
    build_label_classifier("llama-gqa", folder / "CLASSIFIER", bias=False)
    train_by_chance(folder / "CLASSIFIER", folder / "LORA-OF-LABELS", seed=0)
    rows = [{**QUESTIONS[number % 4], "id": f"q{number}"} for number in range(24)]
    write_jsonl(folder / "questions.jsonl", rows)
    _write_letters(folder, rows)
    _write_texts(folder / "texts.csv")
    _write_corpora(folder)
    (folder / "mine.jinja").write_text(MINE)
    (folder / "pipeline.yaml").write_text(PIPELINE)
    for name in ("SmolLM2-135M-Instruct.Q4_1.gguf", "model.gguf"):
        write_tiny_gguf(folder / name)


def _write_adapter(model: Path, folder: Path, seed: int) -> None:
    import peft
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    peft.get_peft_model(AutoModelForCausalLM.from_pretrained(model), config).save_pretrained(folder)


def _write_letters(folder: Path, rows: list[dict]) -> None:
    """test.csv, train.csv and with_context.csv in the layout of letters."""
    lines = ["id,prompt,A,B,answer,context"]
    for index, row in enumerate(rows):
        cells = (row["id"], row["question"], *row["options"][:2], "AB"[index % 2], "the moon")
        lines.append(",".join(cells))
    for name in ("test.csv", "train.csv", "with_context.csv"):
        (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")


def _write_texts(path: Path) -> None:
    lines = ["id,text,label", *(f"{n},the moon and word {n},{LABELS[n % len(LABELS)]}" for n in range(12))]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _write_corpora(folder: Path) -> None:
    """A Wikipedia dump, and judged queries with an index of their documents."""
    with gzip.open(folder / "enwiki-cirrussearch-content.json.gz", "wt", encoding="utf-8") as file:
        for number in range(20):
            page = {
                "title": f"Page {number}",
                "text": f"The moon pulls page {number}. A bee finds it.",
                "namespace": 0,
            }
            file.write(
                json.dumps({"index": {"_type": "page", "_id": str(number)}}) + "\n" + json.dumps(page) + "\n"
            )
    documents = [
        {"_id": f"d{number}", "title": "", "text": f"the moon of word {number}"} for number in range(9)
    ]
    write_jsonl(folder / "corpus.jsonl", documents)
    write_jsonl(folder / "queries.jsonl", [{"_id": "1", "text": "word 3"}, {"_id": "2", "text": "word 5"}])
    (folder / "qrels").mkdir()
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n1\td3\t1\n2\td5\t1\n")
    assert main(["index", "--corpus", str(folder / "corpus.jsonl"), "--out", str(folder / "sci-index")]) == 0
