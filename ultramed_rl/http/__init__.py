"""One way to ask a server over HTTP: reward servers, judges and generators.

session.py (slots, rates, the one loop of attempts, the thread) -> client.py (one request, bounded in time and size)

What a request and its reply mean is the protocol's business: `rewards/http.py`, and for chats of an OpenAI-compatible API

generator.py (may another be taken? known already? what has been used?) -> chat.py (one chat) -> json_reply.py (usable?)
"""
