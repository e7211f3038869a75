"""A stage computed by OpenRLHF 0.11.2's own trainers, from the same config, as a Ray job on one node's GPUs.

    config --> command line --> torchrun in a Ray job --> OpenRLHF's checkpoint --> one that the rest reads
    records --> JSON lines ------^

What it cannot do is refused (`limits.py`); what it does in a way of its own is in docs/recipe.md.
"""
