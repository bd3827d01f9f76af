"""Writes the demo's corpus: `python -m strata.training.demo_corpus.build --out DIR`.

Owns the files: passages.jsonl (every thing), train_passages.jsonl (those of the split train), train.csv,
valid.csv and test.csv (questions without a context); when asked for, synthetic.csv and reading.jsonl (of
invented things).
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from random import Random

from strata.engine.files import write_atomically, write_text_atomically
from strata.engine.types import LETTERS, InputError
from strata.training.demo_corpus.entities import Entity, Kind, facts_of, load_entities, load_kinds
from strata.training.demo_corpus.invented import Scene, capitalize, invent_scenes, make_inventor
from strata.training.demo_corpus.passages import write_passage
from strata.training.demo_corpus.questions import QuizQuestion, write_question
from strata.training.demo_corpus.splits import SPLITS, split_entities


@dataclass(frozen=True, kw_only=True)
class BuildConfig:
    """What to write; the same settings give the same bytes."""

    out: Path
    """Folder for the files."""
    seed: int = 0
    """Decides the split, the wording of passages and questions, and what is invented."""
    synthetic: int = 0
    """So many questions on invented things, with their contexts, go to synthetic.csv."""
    reading: int = 0
    """So many texts for the task lm (a context, then questions with right answers) go to reading.jsonl."""
    without_context: float = 0.0
    """Share of the synthetic questions that have an empty context."""

    in_context: float = 0.7
    """Share of the synthetic questions whose wrong options are in their contexts, too."""

    def __post_init__(self) -> None:
        for name in ("synthetic", "reading"):
            if getattr(self, name) < 0:
                raise InputError(f"--{name}: {getattr(self, name)}; expected 0 or more")
        for flag, share in (
            ("--without-context", self.without_context),
            ("--in-context", self.in_context),
        ):
            if not 0 <= share <= 1:
                raise InputError(f"{flag}: {share}; expected a share, 0 to 1")


def build_corpus(config: BuildConfig) -> dict[str, int]:
    """Writes the files.

    Args:
        config: what to write and where.

    Returns:
        Rows by file name.
    """
    kinds = load_kinds()
    entities = load_entities(kinds)
    splits = split_entities(entities, config.seed)
    rows = {}
    for name, things in (("passages.jsonl", entities), ("train_passages.jsonl", splits["train"])):
        rows[name] = _write_jsonl(config.out / name, write_passages(things, kinds, config.seed))
    for split in SPLITS:
        others = splits["train"] if split == "train" else entities
        questions = write_questions(splits[split], others, kinds, config.seed)
        asked = (_question_row(f"{split}-{number}", q) for number, q in enumerate(questions))
        rows[f"{split}.csv"] = _write_csv(config.out / f"{split}.csv", asked)
    inventor = make_inventor(kinds, splits["train"], config.in_context)
    if config.synthetic:
        scenes = invent_scenes(inventor, config.seed)
        made = islice(synthetic_rows(scenes, config.without_context, config.seed), config.synthetic)
        rows["synthetic.csv"] = _write_csv(config.out / "synthetic.csv", made)
    if config.reading:
        texts = ({"text": reading_text(s)} for s in invent_scenes(inventor, config.seed + 1))
        rows["reading.jsonl"] = _write_jsonl(config.out / "reading.jsonl", islice(texts, config.reading))
    return rows


def write_passages(entities: Sequence[Entity], kinds: Mapping[str, Kind], seed: int) -> list[dict[str, str]]:
    """One page a thing, as `strata index` reads it: id, title, text."""
    return [
        {
            "id": f"{entity.kind}-{entity.name}".casefold().replace(" ", "-"),
            "title": capitalize(entity.name),
            "text": write_passage(entity, kinds[entity.kind], Random(f"{seed} passage {entity.name}")),
        }
        for entity in entities
    ]


def write_questions(
    asked: Sequence[Entity], known: Sequence[Entity], kinds: Mapping[str, Kind], seed: int
) -> list[QuizQuestion]:
    """One question a fact of the things in `asked`; wrong options are values of those in `known`."""
    questions = []
    for entity in asked:
        others = [other for other in known if other is not entity]
        for fact in facts_of(entity, kinds[entity.kind]):
            rng = Random(f"{seed} question {entity.name} {fact.attribute.name}")
            questions.append(write_question(fact, others, rng))
    return [question for question in questions if question is not None]


def context_of(scene: Scene) -> str:
    """The scene's passages put together as `strata search` does."""
    return "\n\n".join(f"{title}\n{text}" for title, text in scene.passages)


def reading_text(scene: Scene) -> str:
    """The scene as the template `statement` shows it: right answers only, question after question."""
    asked = (f"Question: {q.prompt}\nAnswer: {q.options[q.answer]}" for q in scene.questions)
    return "\n\n".join([f"Context: {context_of(scene)}", *asked])


def synthetic_rows(scenes: Iterable[Scene], without_context: float, seed: int) -> Iterable[dict[str, str]]:
    """Rows of a question file with a context column, without end when the scenes are."""
    rng = Random(seed)
    questions = ((scene, question) for scene in scenes for question in scene.questions)
    for number, (scene, question) in enumerate(questions):
        context = "" if rng.random() < without_context else context_of(scene)
        yield _question_row(f"synthetic-{number}", question, context=context)


def _question_row(id: str, question: QuizQuestion, **more: str) -> dict[str, str]:
    options = dict(zip(LETTERS, question.options, strict=False))
    return {"id": id, "prompt": question.prompt, **more, **options, "answer": LETTERS[question.answer]}


def _write_csv(path: Path, rows: Iterable[Mapping[str, str]]) -> int:
    """Writes rows, whose columns are all those of the first; returns how many."""
    kept = list(rows)

    def write(temporary: Path) -> None:
        with temporary.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(kept[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(kept)

    write_atomically(path, write)
    return len(kept)


def _write_jsonl(path: Path, rows: Iterable[Mapping[str, str]]) -> int:
    """Writes a line a row; returns how many."""
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    write_text_atomically(path, "".join(lines))
    return len(lines)


if __name__ == "__main__":
    import tyro

    for file_name, num_rows in build_corpus(tyro.cli(BuildConfig)).items():
        print(f"{file_name}: {num_rows} rows")
