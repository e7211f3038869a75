"""Model and data cards: a README.md in every checkpoint and data set, as the Hugging Face hub reads them.

A card is part of the directory that is digested, so it holds no times: the same run writes the same card.
"""

from ultramed_rl.store.cards.card import (
    DataFacts,
    EarlierStep,
    Input,
    ModelFacts,
    Role,
    data_card,
    model_card,
)
from ultramed_rl.store.cards.facts import (
    CARD,
    count_sets,
    earlier_steps,
    made_from,
    read_versions,
    split_files,
    write_card,
)

__all__ = [
    "CARD",
    "DataFacts",
    "EarlierStep",
    "Input",
    "ModelFacts",
    "Role",
    "count_sets",
    "data_card",
    "earlier_steps",
    "made_from",
    "model_card",
    "read_versions",
    "split_files",
    "write_card",
]
