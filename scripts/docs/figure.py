"""docs/figures/sweep.svg: a question as a tree, and what disk, processor and store do meanwhile.

Needs matplotlib, of the extra `docs`. `python -m strata.scripts.docs.figure` draws it again, in the
repository's root.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

FILE = Path("docs/figures/sweep.svg")
PREFIX_TOKENS, OPTION_TOKENS, NUM_OPTIONS = 1200, 60, 5
NUM_LAYERS, NUM_MICRO_BATCHES, READ_S, BATCH_S = 4, 4, 3.0, 1.0
COLORS = ("#5b7db1", "#d08c60", "#7a9e7e")


def main() -> None:
    """Writes the figure, with the same bytes each time."""
    matplotlib.rcParams.update({"svg.hashsalt": "strata", "svg.fonttype": "none", "font.size": 9})
    figure = Figure(figsize=(8.5, 5.2))
    tree, times = figure.subplots(2, 1, height_ratios=(1.1, 1))
    draw_tree(tree)
    draw_times(times)
    for axes in (tree, times):
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(left=False)
    figure.tight_layout()
    FILE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(FILE, metadata={"Date": None})


def draw_tree(axes: Any) -> None:
    """What a question's options share is computed once; each option goes on from there."""
    axes.barh(0, PREFIX_TOKENS, color=COLORS[0], height=0.8)
    for option in range(NUM_OPTIONS):
        place = (NUM_OPTIONS - 1) / 2 - option
        axes.barh(place, OPTION_TOKENS, left=PREFIX_TOKENS + 40, color=COLORS[1], height=0.7)
        axes.plot((PREFIX_TOKENS, PREFIX_TOKENS + 40), (0, place), color="#888888", linewidth=0.8)
        axes.text(PREFIX_TOKENS + OPTION_TOKENS + 50, place, "ABCDE"[option], va="center")
    axes.text(
        PREFIX_TOKENS / 2, 0, "instructions, context, question", va="center", ha="center", color="white"
    )
    axes.set_title("One question: tokens computed once, options as branches", loc="left")
    axes.set_xlabel("position of a token")
    axes.set_yticks([])


def draw_times(axes: Any) -> None:
    """Layer j+1 is read while all micro-batches of all questions go through layer j."""
    for layer in range(NUM_LAYERS):
        compute_s = NUM_MICRO_BATCHES * BATCH_S
        began = READ_S + layer * compute_s
        read_at = 0.0 if layer == 0 else began - compute_s
        axes.broken_barh([(read_at, 0.97 * READ_S)], (2, 0.8), color=COLORS[2])
        axes.text(read_at + READ_S / 2, 2.4, f"layer {layer + 1}", ha="center", va="center", color="white")
        batches = [(began + number * BATCH_S, 0.92 * BATCH_S) for number in range(NUM_MICRO_BATCHES)]
        axes.broken_barh(batches, (1, 0.8), color=COLORS[0])
        for number, (start, _) in enumerate(batches):
            label = f"{layer + 1}.{number + 1}"
            axes.text(start + 0.46, 1.4, label, ha="center", va="center", color="white", fontsize=7)
        stored = [(start + BATCH_S, 0.4) for start, _ in batches]
        axes.broken_barh(stored, (0, 0.8), color=COLORS[1])
    axes.set_yticks([2.4, 1.4, 0.4], ["read weights", "compute layer.slice", "store hidden states"])
    axes.set_xticks([])
    axes.set_xlabel("time")
    axes.set_title("The sweep: all questions go through a layer while the next is read", loc="left")


if __name__ == "__main__":
    main()
