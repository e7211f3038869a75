"""How much may still be asked: what was used, and what those under way may use, against the budgets."""

from __future__ import annotations

from typing import Literal

from ultramed_rl.config.generation import Endpoint
from ultramed_rl.data.factory.api.body import largest_use
from ultramed_rl.data.factory.api.replies import ApiUsage
from ultramed_rl.records import ChatRequest


def cost(endpoint: Endpoint, prompt_tokens: int, completion_tokens: int) -> float:
    """What so many tokens cost, in the prices' currency."""
    return (endpoint.prompt_price * prompt_tokens + endpoint.completion_price * completion_tokens) / 1e6


class Budget:
    """Says when to go on, to wait and to stop.

    While something is under way that may use up the rest, nothing more is taken. So a run goes over its budget
    by one request at most, and by what failed attempts at those under way use.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self._tokens, self._cost = 0, 0.0

    def taken(self, request: ChatRequest, sign: Literal[1, -1] = 1) -> None:
        """A request is under way; or, with -1, it is no more."""
        prompt, completion = largest_use(request)
        self._tokens += sign * (prompt + completion)
        self._cost += sign * cost(self.endpoint, prompt, completion)

    def allows(self, usage: ApiUsage) -> bool:
        """Whether one more may be taken now."""
        tokens, money = self.endpoint.token_budget, self.endpoint.money_budget
        return (tokens is None or usage.tokens + self._tokens < tokens) and (
            money is None or usage.cost + self._cost < money
        )

    def spent(self, usage: ApiUsage) -> str:
        """Which budget is used up and by what, or nothing."""
        tokens, money = self.endpoint.token_budget, self.endpoint.money_budget
        if tokens is not None and usage.tokens >= tokens:
            return f"token_budget={tokens}: {usage.tokens} tokens are used; raise it to go on"
        if money is not None and usage.cost >= money:
            return f"money_budget={money:g}: {usage.cost:.4g} are used; raise it to go on"
        return ""
