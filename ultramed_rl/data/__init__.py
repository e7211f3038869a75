"""From rows behind a URI to what is learnt.

sources.py (rows) -> chats.py, transcripts.py (turns, misfits) -> prompts.py (the pool, a round's share) -> contrasts.py (for a reward model)
                                               -> conversations.py, preferences.py -> stage_data.py (an offline stage's samples)
vignettes.py: options in lines; likeness.py: when two questions are one; identity.py: keys, ids, splits; templates.py: what is asked
"""
