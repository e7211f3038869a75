#!/usr/bin/env bash
# The whole loop on this machine: set up what is missing, then three online rounds on a real 135M model.
# Arguments are passed on: section.key=value overrides, or --resume.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash launch/setup.sh
export DO_NOT_TRACK=1
# The preset computes on CPU; a CUDA build of vLLM computes on GPUs only.
if grep -q '^cuda' .venv/.ultramed_rl-setup; then set -- cluster.device=cuda "$@"; fi
exec .venv/bin/ultramed-rl run configs/quickstart.yaml "$@"
