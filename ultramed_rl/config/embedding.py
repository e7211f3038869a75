"""What vectors of texts are made by."""

from __future__ import annotations

HASHED = "hashed"
EMBEDDER = (
    "what near duplicates are told by: hashed (counts of hashed words, without a model), or a sentence-embedding "
    "model's path, package:// or hub id"
)
