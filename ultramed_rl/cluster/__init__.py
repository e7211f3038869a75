"""Where a run computes: the plan (pure arithmetic), Ray placement, and groups of actors."""
