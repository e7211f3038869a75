"""Models: loading and saving, the policy and reward heads, the model that needs no hub."""
