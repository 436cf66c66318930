"""A worker with a model: ranks texts by their meaning, with sentence embeddings computed on a CPU.

The model (WordLlama: 256 dimensions, 16 MB) lies in the PyPI package, so nothing is downloaded at the start.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import wordllama

import serverless

SCHEMA = {
    "query": {"type": str, "required": True, "constraints": lambda query: 0 < len(query) <= 10_000},
    "documents": {
        "type": list,
        "required": True,
        "constraints": lambda texts: 0 < len(texts) <= 1000 and all(isinstance(text, str) and text for text in texts),
    },
}

# Loaded once, before the first job. Its loader looks for the tokenizer in a cache; the package has it in that form.
model = wordllama.WordLlama.load(cache_dir=Path(wordllama.__file__).parent, disable_download=True)


def handler(job: dict[str, Any]) -> dict[str, Any]:
    """Rank the documents by how close their meaning is to the query's, with scores from -1 to 1."""
    checked = serverless.validate(job["input"], SCHEMA)
    if "errors" in checked:
        return {"error": " ".join(checked["errors"])}
    asked = checked["validated_input"]
    scores = [float(model.similarity(asked["query"], document)) for document in asked["documents"]]
    best_first = sorted(range(len(scores)), key=lambda index: -scores[index])
    return {"ranking": [{"index": index, "score": round(scores[index], 3)} for index in best_first]}


if __name__ == "__main__":
    serverless.start({"handler": handler})
