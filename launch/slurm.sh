#!/usr/bin/env bash
#SBATCH --job-name=ultramed_rl
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=96
#SBATCH --mem=0
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
#SBATCH --signal=B:USR1@300
# A Ray cluster on the nodes of one SLURM job, and a run on it. From the project's folder, on a disk that all nodes see:
#   sbatch launch/slurm.sh configs/llama3-70b-4node.yaml run.directory=/shared/runs
#   sbatch --nodes=1 --export=ALL,ULTRAMED_RL_COMMAND=sft launch/slurm.sh configs/sft/ultramedical-8b.yaml
# A job that is preempted, loses a node or comes within five minutes of its limit is queued again and goes on.
#   ULTRAMED_RL_COMMAND  run (default), sft, reward, preference, evaluate, recipe, "data score", ...
#   ULTRAMED_RL_VENV     the environment; default .venv where sbatch was called
#   ULTRAMED_RL_HEAD_IP  the head's address; default the first that it has
#   ULTRAMED_RL_PORT     Ray's port on the head; default 6379
#   ULTRAMED_RL_WAIT_S   how long nodes may take to come up; default 600
# Who joins this Ray needs its token: the nodes have it in their environment; for `ultramed-rl jobs` and `submit` it is in
# .ray-token-JOB where sbatch was called, which only its owner can read, until the job ends.
# NCCL's variables (NCCL_SOCKET_IFNAME, NCCL_IB_HCA, ...) and HF_HOME are passed on as sbatch got them.
set -euo pipefail

config=${1:?slurm.sh: which config? as in: sbatch launch/slurm.sh configs/llama3-70b-4node.yaml run.directory=/shared/runs}
shift
read -r -a command <<<"${ULTRAMED_RL_COMMAND:-run}"
venv=${ULTRAMED_RL_VENV:-${SLURM_SUBMIT_DIR:-$PWD}/.venv}
export PATH="$venv/bin:$PATH"
port=${ULTRAMED_RL_PORT:-6379}
cpus=${SLURM_CPUS_PER_TASK:-1}
patience=${ULTRAMED_RL_WAIT_S:-600}

say() { echo "slurm.sh: $*"; }
die() { echo "slurm.sh: $*" >&2; exit 1; }

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
[ "${#nodes[@]}" -gt 0 ] || die "SLURM_JOB_NODELIST='$SLURM_JOB_NODELIST' names no node; start this script with sbatch"
head=${nodes[0]}
ip=${ULTRAMED_RL_HEAD_IP:-$(srun --nodes=1 --ntasks=1 --nodelist="$head" hostname -I | awk 'NR == 1 {print $1}')}
[ -n "$ip" ] || die "no address of $head found; set ULTRAMED_RL_HEAD_IP"
address=$ip:$port
token=${SLURM_SUBMIT_DIR:-$PWD}/.ray-token-${SLURM_JOB_ID:-$$}
RAY_AUTH_TOKEN=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN

# Each part of the cluster is a step that lives as long as its Ray; all end with this script.
steps=()
driver=""
finish() {
  trap - EXIT
  if [ -n "$driver" ]; then kill "$driver" 2>/dev/null || true; wait "$driver" 2>/dev/null || true; fi
  for step in "${steps[@]}"; do kill "$step" 2>/dev/null || true; done
  rm -f "$token"
  wait
}
trap finish EXIT
rm -f "$token"
(umask 077 && printf %s "$RAY_AUTH_TOKEN" >"$token")
queue_again() {
  say "close to the time limit: queued again; what is finished is kept"
  scontrol requeue "$SLURM_JOB_ID"
  exit 0
}
trap queue_again USR1
trap 'exit 143' TERM

# Sleeps in the background, so that a signal is answered at once.
rest() { sleep "$1" & wait $! || true; }
start() {
  local count=$1 where=$2
  shift 2
  # A node whose Ray dies must not take the others with it: what may go on without it is the run's to say.
  srun --nodes="$count" --ntasks="$count" --cpus-per-task="$cpus" --kill-on-bad-exit=0 "$where" \
    ray start "$@" --block --num-gpus="${SLURM_GPUS_ON_NODE:-0}" --num-cpus="$cpus" &
  steps+=("$!")
}
alive() { ray status --address="$address" 2>/dev/null | grep -cE '^ *[0-9]+ node_' || true; }
wait_for() {
  local wanted=$1 deadline=$((SECONDS + patience)) found
  while found=$(alive); [ "$found" -lt "$wanted" ]; do
    for step in "${steps[@]}"; do
      kill -0 "$step" 2>/dev/null || die "Ray ended on a node before all were up; its lines above say why"
    done
    [ "$SECONDS" -lt "$deadline" ] || die "$found of $wanted nodes were up within $patience s; raise ULTRAMED_RL_WAIT_S or look at the nodes"
    rest 2
  done
}

say "head $head ($address), ${#nodes[@]} nodes; to join: RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$token"
start 1 --nodelist="$head" --head --node-ip-address="$ip" --port="$port" --temp-dir="/tmp/ray-${SLURM_JOB_ID:-$$}"
wait_for 1
if [ "${#nodes[@]}" -gt 1 ]; then start $((${#nodes[@]} - 1)) --exclude="$head" --address="$address"; fi
wait_for "${#nodes[@]}"
say "all nodes are up"

# --resume does no harm where there is nothing to resume: the same line begins a run and takes it up again.
RAY_ADDRESS=$address ultramed-rl "${command[@]}" "$config" "$@" --resume &
driver=$!
code=0
wait "$driver" || code=$?
driver=""
exit "$code"
