"""Where prompts come from: rows by URI, their chats, the pool and its rounds; contrasts for a reward model.

sources.py (rows) -> vignettes.py (cleaning) -> prompts.py (the pool, a round's share) -> contrasts.py
"""
