"""Owns the few questions the tests score, of two to five options, and how to write rows to a file."""

from __future__ import annotations

import json
from pathlib import Path

QUESTIONS = [
    {
        "id": "tide",
        "question": "What makes the tide turn?",
        "options": ["the moon", "warm water", "the wind over the hills", "a stone"],
        "answer": 0,
        "context": "The moon pulls on the ocean, and so does the sun, though less.",
    },
    {
        "id": "07",
        "question": "Which metals were melted together?",
        "options": ["tin and iron", "sand"],
        "answer": 0,
        "context": "Copper, iron and tin were melted by the smiths of the valley.",
    },
    {
        "id": "\u00e9t\u00e9",
        "question": "O\u00f9 va la rivi\u00e8re?",
        "options": ["\u00e0 la mer", "au ciel", "nowhere"],
        "answer": 2,
        "context": "",
    },
    {
        "id": "bee",
        "question": "How does a bee find the field?",
        "options": ["by the light of the sky", "by the moon", "it asks", "by the river", "by luck"],
        "answer": 0,
        "context": "The moon pulls on the ocean. A bee finds the field by the light of the sky.",
    },
]


def write_jsonl(path: Path, rows: list[dict]) -> Path:
    """Write one JSON object a line and return the path."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
