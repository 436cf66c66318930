"""In place of Hugging Face's `datasets`, which SGLang's benchmark imports for a data set that is not used here."""

from __future__ import annotations

from typing import Any, NoReturn


def load_dataset(*_: Any, **__: Any) -> NoReturn:
    """Nothing is loaded from anywhere."""
    raise NotImplementedError("the package `datasets` is not installed; use --dataset-name random-ids")
