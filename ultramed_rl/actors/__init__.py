"""Who computes: policy, reference, reward, rollout, and the weights' way between them."""
