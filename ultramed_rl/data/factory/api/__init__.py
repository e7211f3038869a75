"""One way to ask an OpenAI-compatible API; the factory's generator and the judges both take it.

generator.py -> budget.py (may another be taken?) -> ledger.py (known already? what has been used?)
             -> session.py (rates, slots, retries) -> transport.py (one HTTP request; body.py writes it)
             -> structured.py (the JSON that the schema asks for, or what is wrong with it)
"""
