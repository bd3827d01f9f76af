"""The oracle of GGUF files: transformers' own load of one, every weight decoded into memory."""

from __future__ import annotations

import torch

from ...reference import Reference


class GgufReference(Reference):
    """transformers' own load of a GGUF file."""

    def _load(self, model_class: type, **settings: object) -> torch.nn.Module:
        folder, name = self.folder.parent, self.folder.name
        model = model_class.from_pretrained(
            folder, gguf_file=name, dtype=self.dtype, attn_implementation=self.attention, **settings
        )
        return model.eval()
