"""One way to ask an OpenAI-compatible API; the factory's generator and the judges both take it.

generator.py -> budget.py (may another be taken?) -> replies.py (known already? what has been used?)
             -> attempts.py (until the reply can be used) -> chat.py (one chat; body.py writes it) -> ultramed_rl.http
             -> structured.py (the JSON that the schema asks for, or what is wrong with it)
"""
