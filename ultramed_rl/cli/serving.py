"""The command that serves a reward model."""

from __future__ import annotations

from typing import Annotated

import typer

from ultramed_rl.cli.exits import FAILED, WRONG, fail, one_line
from ultramed_rl.cli.program import command


@command("serve-reward")
def serve_reward_command(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="a reward model's path or hub id")],
    host: Annotated[str, typer.Option(help="address to listen on")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 5000,
    device: Annotated[str, typer.Option(help="auto, cuda or cpu")] = "auto",
    precision: Annotated[str, typer.Option(help="auto, bfloat16 or float32")] = "auto",
    no_token: Annotated[bool, typer.Option("--no-token", help="ask for none; on loopback only")] = False,
) -> None:
    """Serve a reward model over HTTP, in OpenRLHF's protocol, until Ctrl-C.

    Requests must show the token in ULTRAMED_RL_REWARD_TOKEN; one is made up where it isn't set.

    Example: ultramed-rl serve-reward runs/mine/initial/reward_model --port 5001
    """
    for option, value, allowed in (
        ("--device", device, ("auto", "cuda", "cpu")),
        ("--precision", precision, ("auto", "bfloat16", "float32")),
    ):
        if value not in allowed:
            fail(f"{option} {value}: must be one of {', '.join(allowed)}", WRONG)
    from ultramed_rl.rewards.server import serve_reward

    try:
        serve_reward(model, host, port, no_token=no_token, device=device, precision=precision)
    except ValueError as error:
        fail(str(error), WRONG)
    except (RuntimeError, OSError) as error:
        fail(one_line(error), FAILED)
