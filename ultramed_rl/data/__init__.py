"""Where prompts come from: rows by URI, chats made of rows, the pool and its rounds, contrasts for a reward model.

sources.py (rows) -> vignettes.py (cleaning) -> prompts.py (the pool, a round's share) -> contrasts.py
"""
