"""A pipeline on the bundled demo model, which answers from a passage and guesses without one."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from strata.engine.pipeline.config import read_pipeline
from strata.engine.pipeline.run import PipelineRun, run_pipeline
from strata.engine.pipeline.settings import RunSettings
from strata.engine.types import Question

DATA = Path(__file__).parents[3] / "scripts" / "demo_data"
MEMBER = f"model: {DATA / 'model'}, adapter: {DATA / 'adapter'}"

CASCADE = f"""\
retrieval: {{wiki: {{index: none}}}}
members:
  closed: {{{MEMBER}, context: none}}
  open: {{{MEMBER}, context: wiki}}
stages:
  - members: [closed]
  - {{name: hard, members: [open], questions: {{least_sure: 0.5}}, combine: replace}}
machine: {{dtype: float32, devices: cpu}}
"""


def write_questions(path: Path, *, start: int = 0, num: int = 40, with_answers: bool = True) -> Path:
    """Some of the bundled questions."""
    header, *rows = (DATA / "questions.csv").read_text().splitlines()
    rows = rows[start : start + num]
    if not with_answers:
        header, rows = header.rsplit(",", 1)[0], [row.rsplit(",", 1)[0] for row in rows]
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def find_passages(questions: Sequence[Question], stopped: object) -> list[str]:
    """The bundled passage that shares most words with each question, rare ones counting more."""
    lines = (DATA / "passages.jsonl").read_text().splitlines()
    texts = [json.loads(line)["text"] for line in lines]
    words = [set(re.findall(r"\w+", text.lower())) for text in texts]
    num_with = Counter(word for of_text in words for word in of_text)

    def shared(asked: set[str], place: int) -> float:
        return sum(1 / num_with[word] for word in asked & words[place])

    found = []
    for question in questions:
        asked = set(re.findall(r"\w+", question.prompt.lower()))
        found.append(texts[max(range(len(texts)), key=partial(shared, asked))])
    return found


def run(
    folder: Path, text: str, questions: Path, finder: Callable = find_passages, **settings: object
) -> PipelineRun:
    """Runs a file's text; `out` is a folder of that name unless told otherwise."""
    path = folder / "run.yaml"
    path.write_text(text)
    given = {"config": path, "questions": questions, "out": folder / "out", "probe": False} | settings
    pipeline = read_pipeline(path)
    finders = dict.fromkeys(pipeline.sources, finder)
    return run_pipeline(pipeline, RunSettings(**given), finders)
