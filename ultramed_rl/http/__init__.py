"""One way to ask a server over HTTP: reward servers, judges and generators.

session.py (slots, rates, retries, the thread) -> client.py (one request, bounded in time and size)
                                               -> strict_json.py (the reply, or why it is none)

What a request and its reply mean is the protocol's business: `rewards/http.py`, and for chats of an OpenAI-compatible API

generator.py (may another be taken?) -> replies.py (known already? what has been used?)
                                     -> attempts.py (until the reply is usable, the JSON asked for) -> chat.py (one chat)
"""
