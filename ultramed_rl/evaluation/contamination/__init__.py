"""Whether a policy has trained on what it is asked: what it trained on, and the search in it."""
