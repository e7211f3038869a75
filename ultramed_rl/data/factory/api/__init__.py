"""One way to ask an OpenAI-compatible API; the factory's generator and the judges both take it.

generator.py (may another be taken?) -> replies.py (known already? what has been used?)
             -> attempts.py (until the reply can be used, and is the JSON asked for) -> chat.py (one chat) -> ultramed_rl.http
"""
