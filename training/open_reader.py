"""Which reader a run learns with: an encoder, a decoder streamed layer by layer, or one in memory.

Each kind is imported when it is asked for, so that a run loads no library that it does not need.
"""

from __future__ import annotations

import logging
from warnings import filterwarnings

from strata.training.config import TrainConfig
from strata.training.types import Reader


def open_reader(config: TrainConfig) -> Reader:
    """Opens the model of a run.

    Raises:
        InputError: the checkpoint cannot be trained so.
    """
    quiet_libraries()
    if config.task == "multiple-choice":
        from strata.training.readers.encoder_reader import open_encoder_reader

        return open_encoder_reader(config)
    if config.streamed:
        from strata.training.readers.streamed_reader import open_streamed_reader

        return open_streamed_reader(config)
    from strata.training.readers.resident_reader import open_resident_reader

    return open_resident_reader(config)


def quiet_libraries() -> None:
    """Silences what the libraries say to their developers: progress bars of loading, optional kernels."""
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    # PEFT asks transformers for a property under its old name.
    filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
