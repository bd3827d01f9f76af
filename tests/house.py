"""The plan of the house, for test_layout.py to hold: who may import whom. docs/design.md tells why."""

from __future__ import annotations

MAX_LINES = 300
MAX_PYTHON_FILES = 15

# Whose modules a folder may import; scripts composes all of them.
ALLOWED = {
    "kernels": ("strata.kernels",),
    "engine": ("strata.engine", "strata.kernels"),
    "training": ("strata.training", "strata.engine"),
    "retrieval": (
        "strata.retrieval",
        "strata.engine.types",
        "strata.engine.files",
        "strata.engine.json_files",
        "strata.engine.model_files",
        "strata.engine.ray_cluster",
    ),
}

# The rooms of each folder, row by row: a room imports rooms of earlier rows only.
ROWS = {
    "engine": (
        "types progress memory_errors",
        "files json_files deadline tree ray_cluster",
        "model_files calibration yaml_files",
        "adapters questions heads weights results folder_lock",
        "prompts machine model ensembles",
        "members plan encoders pack report",
        "sweep config",
        "jobs",
        "scorer",
        "run probe smoothquant",
        "pipeline",
    ),
    "kernels": ("triton_support", "prefix_attention dequant int8_linear elementwise"),
    "training": (
        "types loss_scale",
        "tasks",
        "config",
        "label_names base_model work_plan",
        "data readers",
        "loop open_reader run_plan",
        "demo_corpus",
    ),
    "retrieval": (
        "types library_errors",
        "index_config rankings",
        "corpus search_config",
        "index queries",
        "searchers refine evaluate",
        "search",
        "open_index",
    ),
    "scripts/bench": (
        "configs process_memory timing record steps",
        "roofline limited_process harness accuracy",
        "workloads",
        "calibrate large train retrieval peers debias trust rows members deadline lm_eval start trace",
        "sweep gpu",
        "cli",
    ),
}

# Rooms that do not know each other, whatever their rows.
TEXT_WING = ("questions", "heads", "prompts")
MACHINE_WING = ("weights", "adapters", "model", "machine", "plan", "sweep")
APART = [
    *(
        ("engine", one, other)
        for text in TEXT_WING
        for machine in MACHINE_WING
        for one, other in ((text, machine), (machine, text))
    ),
    ("training", "loop", "readers"),
    ("training", "readers", "data"),
    ("training", "demo_corpus", "readers"),
    ("training", "demo_corpus", "loop"),
    ("training", "demo_corpus", "data"),
]
FORBIDDEN_MODULES = {"training": ("strata.engine.run", "strata.engine.scorer", "strata.engine.jobs")}

# Docstrings say what a function does ("Writes"), not what to do ("Write").
COMMANDING = """
    Add Answer Append Average Build Calculate Check Choose Close Compare Compile Compute Convert Copy
    Count Create Cut Decide Decode Delete Describe Encode Ensure Fill Find Get Give Keep Let List
    Load Make Measure Merge Move Multiply Open Parse Plan Predict Prepare Print Put Raise Read Record
    Refuse Remember Remove Render Reorder Replace Return Run Save Say Score Search Select Send Set
    Shorten Show Sort Split Start Stop Store Take Tell Tokenize Train Try Turn Update Use Validate
    Verify Wait Walk Wrap Write
"""
