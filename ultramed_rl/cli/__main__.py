"""`python -m ultramed_rl.cli`."""

from ultramed_rl.cli import main

main()
