#!/usr/bin/env bash
# Lint, format, types and tests that need no GPU: unit tests on two cores, then the integration tests.
#   launch/test.sh          all but those whose real processes take a minute or more
#   launch/test.sh --all    these too
#   launch/test.sh tests/unit/test_x.py -k y     one run of pytest with these arguments
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash launch/setup.sh --dev
# Reports are tested in Debian's browser. Without it those tests say that they are skipped.
if ! command -v chromium >/dev/null 2>&1 && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
  { apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends chromium; } \
    >/dev/null 2>&1 || true
fi
export DO_NOT_TRACK=1 TOKENIZERS_PARALLELISM=false
# Tests start many processes of Python: what one of them has compiled is kept for the others.
export PYTHONDONTWRITEBYTECODE=
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
chosen=(-m "not slow")
if [ "${1:-}" = --all ]; then chosen=(); shift; fi
[ $# -eq 0 ] || exec .venv/bin/python -m pytest "$@"
trap 'exit 130' INT  # pytest ends by itself then, and the next one would begin
status=0
.venv/bin/python -m pytest tests/unit tests/benchmarks tests/fake_cuda tests/gpu -n 2 --dist worksteal --durations=5 || status=$?
# Real processes spend more time waiting than computing: two files of tests at once.
.venv/bin/python -m pytest tests/integration "${chosen[@]}" -n 2 --dist loadfile --durations=20 || status=$((status ? status : $?))
exit "$status"
