#!/usr/bin/env bash
# Is this project right on this machine's GPUs, and how fast? A table, and one line of JSON at the end.
#   launch/gpu_check.sh [--minutes 10] [--only PART ...] [--skip PART ...]
# It wants torch, transformers and pydantic; what has peft, vLLM, DeepSpeed, Ray or a second GPU beside them measures more.
# PYTHON=... names the Python that has them; by default that of .venv, or python3.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-.venv/bin/python}
command -v "$python" >/dev/null 2>&1 || python=python3
exec "$python" -m benchmarks.gpu_check "$@"
