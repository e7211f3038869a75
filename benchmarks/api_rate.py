"""How much of an endpoint's rate limit is used while a fifth of its replies are trouble?

    python benchmarks/api_rate.py --limit 50

The endpoint is a fake one in a process of its own. Within its limit it answers, or meets trouble: 429 with and
without Retry-After, 500, 503, silence beyond the time-out, truncated and invalid JSON; over its limit it says
429. `ratio` is the requests that it admitted over those that its limit allowed, from the first request to the
last reply, so the retries that are waited for in the end count against it. The last line is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from line import print_line

from ultramed_rl.config.models import Endpoint
from ultramed_rl.http.generator import ApiGenerator
from ultramed_rl.records import ChatReply, ChatRequest, Message

ROOT = Path(__file__).parents[1]
TIMEOUT_S = 1.0
BURST_S = 0.5  # the fake endpoint's
SCHEMA = json.dumps({"type": "object", "properties": {"asked": {"type": "string"}}, "required": ["asked"]})


@contextmanager
def fake_endpoint(limit: float, trouble: float) -> Iterator[tuple[str, dict[str, int]]]:
    """The base URL of one, and what it counted: filled in when the context ends."""
    counts: dict[str, int] = {}
    command = [sys.executable, "-m", "tests.fake_api", str(limit), str(trouble), str(2 * TIMEOUT_S)]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip(), counts
        finally:
            counts |= json.loads(process.communicate("")[0])


async def ask_all(
    url: str, count: int, limit: float, concurrency: int, folder: Path
) -> tuple[list[ChatReply], float]:
    """All replies, and the seconds that they took."""
    endpoint = Endpoint(
        model="m",
        base_url=url,
        requests_per_minute=60 * limit,
        concurrency=concurrency,
        timeout_s=TIMEOUT_S,
        retries=6,
    )
    requests = (
        ChatRequest(str(i), (Message(role="user", content=f"say {i}"),), schema=SCHEMA) for i in range(count)
    )
    replies: list[ChatReply] = []
    with ApiGenerator(endpoint, folder) as generator:

        async def work() -> None:
            for request in requests:
                replies.append(await generator.reply(request))

        started = time.perf_counter()
        await asyncio.gather(*(work() for _ in range(2 * concurrency)))
        seconds = time.perf_counter() - started
        await generator.close()
    return replies, seconds


def report(
    replies: list[ChatReply], seconds: float, counts: dict[str, int], options: argparse.Namespace
) -> dict[str, Any]:
    names = [reply.key for reply in replies]
    allowed = options.limit * seconds + BURST_S * options.limit
    return {
        "benchmark": "api_rate",
        "ours": round(counts["admitted"] / seconds, 2),
        "peer": round(allowed / seconds, 2),
        "ratio": round(counts["admitted"] / allowed, 4),
        "unit": "requests/s",
        "peer_name": "the endpoint's rate limit",
        "requests": options.requests,
        "lost": options.requests - len(set(names)),
        "doubled": len(names) - len(set(names)),
        "errors": sum(bool(reply.error) for reply in replies),
        "over_limit": counts["over_limit"],
        "trouble": options.trouble,
        "seconds": round(seconds, 2),
        "client_cpu_ms_per_request": round(1e3 * time.process_time() / counts["admitted"], 2),
        "work": f"{options.requests:,} requests, of which {options.trouble:.0%} meet 429, 500, time-outs, cut or invalid JSON",
    }


def main() -> None:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--requests", type=int, default=2000)
    arguments.add_argument("--limit", type=float, default=50.0, help="requests a second")
    arguments.add_argument("--trouble", type=float, default=0.2, help="share of admitted requests")
    arguments.add_argument("--concurrency", type=int, default=64)
    options = arguments.parse_args()
    import aiohttp  # noqa: F401 - loaded before the clock runs

    with (
        fake_endpoint(options.limit, options.trouble) as (url, counts),
        tempfile.TemporaryDirectory() as folder,
    ):
        asking = ask_all(url, options.requests, options.limit, options.concurrency, Path(folder))
        replies, seconds = asyncio.run(asking)
    line = report(replies, seconds, counts, options)
    print_line(line, *(f"{line[name]} {name}" for name in ("lost", "doubled") if line[name]))


if __name__ == "__main__":
    main()
