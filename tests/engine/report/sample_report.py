"""A record, rows of scores, and a parser of pages, for the tests of this folder."""

from __future__ import annotations

import base64
import gzip
import json
import re
from html.parser import HTMLParser

import numpy as np

from strata.engine.types import Question, QuestionScores

RECORD = {
    "status": "done",
    "error": None,
    "run_info": {
        "commit": "c0ffee",
        "torch": "2.13.0",
        "machine": {"cpu": "A processor", "gpus": [{"name": "Tesla T4", "memory_gib": None}]},
        "config": {"model": "models/llama-70b", "head": "yes-no", "devices": ["cpu", "cpu"]},
    },
    "plan": {
        "bytes_read": 2000,
        "num_groups": 3,
        "peak_bytes": {"cpu": 2**30, "host": 2**31},
        "predicted_only": 1,
    },
    "measured": {
        "bytes_read": 2000,
        "peak_bytes": {"cpu": 3 * 2**29, "host": None},
        "seconds": 12.5,
        "seconds_by_phase": {"read": 2.0, "sweep": 6.0, "nothing": 0.0},
        "tok_per_s": 4321.0,
        "roofline_fraction": 0.873,
    },
    "metrics": {
        "num_answered": 2,
        "map_at_3": 0.6125,
        "accuracy": 0.5,
        "heuristics": {"uniform_map_at_3": 0.36667, "longest_option_map_at_3": 0.5825},
    },
    "warnings": {
        "rows": {"empty option": {"count": 7, "ids": list("abcdefg")}},
        "messages": ["fell back to fp32"],
    },
}


class Page(HTMLParser):
    """Collects tags with their attributes, table rows as lists of cell texts, and checks that tags close."""

    VOID = frozenset({"meta", "br", "hr", "img", "link", "input"})

    def __init__(self, html):
        super().__init__()
        self.tags, self.rows, self.open_tags = [], [], []
        self.feed(html)
        self.close()
        assert self.open_tags == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open_tags.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open_tags.pop() == tag

    def handle_data(self, data):
        if "td" in self.open_tags or "th" in self.open_tags:
            self.rows[-1][-1] += data


def make_row(question_id, scores, answer=None, prompt="What is it?", options=None, context="", members=None):
    values = np.array(scores, dtype=float)
    question = Question(
        id=question_id,
        prompt=prompt,
        options=options or tuple("abcdefgh"[: len(scores)]),
        answer=answer,
        context=context,
    )
    return QuestionScores(
        question=question,
        scores=values,
        probabilities=np.exp(values) / np.exp(values).sum(),
        member_scores={name: np.array(said, dtype=float) for name, said in (members or {}).items()},
    )


def many_rows(count):
    return [make_row(f"q{number}", [number / count, 0.0], 0) for number in range(count)]


def unpack(html, name):
    """What a page carries under a name, by nothing of ours."""
    (packed,) = re.findall(rf'id="packed-{name}">([^<]*)</script>', html)
    return gzip.decompress(base64.b64decode(packed)).decode()


def unpack_json(html, name):
    return json.loads(unpack(html, name))
