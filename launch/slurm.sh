#!/usr/bin/env bash
#SBATCH --job-name=ultramed_rl
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=96
#SBATCH --mem=0
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
#   ULTRAMED_RL_PORT     the first of the three ports that Ray gets on the head; default by the job's number, so that jobs
#                        can share a node
#   ULTRAMED_RL_WAIT_S   how long nodes may take to come up; default 600
#   ULTRAMED_RL_REQUEUES how often a job whose Ray was lost is queued again; default 5
#   ULTRAMED_RL_INSIDE   a command before all others, as in "apptainer exec --nv --bind /shared /shared/ultramed-rl.sif"
#   ULTRAMED_RL_SRUN     options of srun, as pyxis takes them: "--container-image=/shared/ultramed-rl.sqsh
#                        --container-mounts=/shared:/shared"
# On nodes that others use too, say what is yours: --cpus-per-task=16 --mem=200G --gpus-per-node=2
# Who joins this Ray needs its token: the nodes have it in their environment; for `ultramed-rl jobs` and `submit` it is in
# .ray-token-JOB where sbatch was called, which only its owner can read, until the job ends.
# NCCL's variables (NCCL_SOCKET_IFNAME, NCCL_IB_HCA, ...) and HF_HOME are passed on as sbatch got them.
set -euo pipefail

config=${1:?slurm.sh: which config? as in: sbatch launch/slurm.sh configs/llama3-70b-4node.yaml run.directory=/shared/runs}
shift
read -r -a command <<<"${ULTRAMED_RL_COMMAND:-run}"
read -r -a inside <<<"${ULTRAMED_RL_INSIDE:-}"
read -r -a container <<<"${ULTRAMED_RL_SRUN:-}"
venv=${ULTRAMED_RL_VENV:-${SLURM_SUBMIT_DIR:-$PWD}/.venv}
export PATH="$venv/bin:$PATH"
job=${SLURM_JOB_ID:-$$}
port=${ULTRAMED_RL_PORT:-$((20000 + job % 1000 * 10))}  # below those that the system gives away
cpus=${SLURM_CPUS_PER_TASK:-${SLURM_CPUS_ON_NODE:-1}}
patience=${ULTRAMED_RL_WAIT_S:-600}
temporary=/tmp/ray-$job

say() { echo "slurm.sh: $*"; }
die() { echo "slurm.sh: $*" >&2; exit 1; }

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
[ "${#nodes[@]}" -gt 0 ] || die "SLURM_JOB_NODELIST='$SLURM_JOB_NODELIST' names no node; start this script with sbatch"
head=${nodes[0]}
ip=${ULTRAMED_RL_HEAD_IP:-$(srun --nodes=1 --ntasks=1 --nodelist="$head" hostname -I | awk 'NR == 1 {print $1}')}
[ -n "$ip" ] || die "no address of $head found; set ULTRAMED_RL_HEAD_IP"
address=$ip:$port
on_head=("${inside[@]}")
if [ "${#container[@]}" -gt 0 ]; then
  on_head=(srun --overlap --nodes=1 --ntasks=1 --nodelist="$head" "${container[@]}" "${inside[@]}")
fi
token=${SLURM_SUBMIT_DIR:-$PWD}/.ray-token-$job
RAY_AUTH_TOKEN=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN
# SLURM bounds a job's memory. Ray would end workers by what the whole node uses, which on a shared one is others' too.
export RAY_memory_monitor_refresh_ms=0

# Ray takes a node's memory for its own unless it is told what the job has of it.
memory=()
mebibytes=${SLURM_MEM_PER_NODE:-$((${SLURM_MEM_PER_CPU:-0} * cpus))}
if [ "$mebibytes" -gt 0 ]; then
  shared=$(($(df --output=avail -B1M /dev/shm | tail -1) * 95 / 100))
  objects=$((mebibytes * 3 / 10 < shared ? mebibytes * 3 / 10 : shared))
  memory=("--memory=$(((mebibytes - objects) * 1048576))" "--object-store-memory=$((objects * 1048576))")
fi

# What runs on each node: Ray, again where it died, and at the end nothing of it is left. $1: its folder, $2: how often again.
# SLURM sends SIGTERM to every process of a step, sometimes twice. Ray, which ends its processes at the first, waits for itself
# at the second. If it is killed, the system kills them.
# shellcheck disable=SC2016
keep_ray='
temporary=$1 again=$2; shift 2
trap "for _ in 1 2 3 4 5; do rm -rf $temporary && break; sleep 1; done" EXIT
trap "kill -KILL \$ray 2>/dev/null; wait \$ray; exit 143" TERM
while :; do
  "$@" & ray=$!
  wait "$ray"; code=$?
  [ "$again" -gt 0 ] || exit "$code"
  again=$((again - 1))
  echo "slurm.sh: Ray ended on $(hostname) (exit code $code): started again"
  sleep 5 & wait $!
done'

any_step() { for step in "${steps[@]}"; do kill -0 "$step" 2>/dev/null && return 0; done; return 1; }
all_steps() { for step in "${steps[@]}"; do kill -0 "$step" 2>/dev/null || return 1; done; }
# Each part of the cluster is a step that lives as long as its Ray; all end with this script.
steps=()
driver=""
told=""  # SLURM has sent SIGTERM to all; a second one would end the driver at once
end_steps() {
  # An srun that is told to end kills its tasks at once, and what they have in /tmp would stay.
  [ -n "$told" ] || scancel --signal=TERM "$job" 2>/dev/null || true
  for _ in {1..120}; do any_step || break; sleep 0.5; done
  for step in "${steps[@]}"; do kill "$step" 2>/dev/null || true; done
}
finish() {
  trap - EXIT
  trap : TERM USR1
  if [ -n "$driver" ]; then
    [ -n "$told" ] || kill "$driver" 2>/dev/null || true
    wait "$driver" 2>/dev/null || true
  fi
  end_steps
  rm -f "$token"
  wait
}
trap finish EXIT
rm -f "$token"
(umask 077 && printf %s "$RAY_AUTH_TOKEN" >"$token")
queue_again() {
  say "$1: queued again; what is finished is kept"
  trap : TERM USR1
  scontrol requeue "$SLURM_JOB_ID"
  told=yes
  exit 0
}
trap 'queue_again "close to the time limit"' USR1
trap 'told=yes; exit 143' TERM

# Sleeps in the background, so that a signal is answered at once.
rest() { sleep "$1" & wait $! || true; }
start() {
  local count=$1 where=$2 again=$3
  shift 3
  # A node whose Ray dies must not take the others with it: what may go on without it is the run's to say.
  srun --nodes="$count" --ntasks="$count" --cpus-per-task="$cpus" --kill-on-bad-exit=0 "$where" "${container[@]}" \
    bash -c "$keep_ray" keep_ray "$temporary" "$again" "${inside[@]}" \
    ray start "$@" --block --num-gpus="${SLURM_GPUS_ON_NODE:-0}" --num-cpus="$cpus" "${memory[@]}" \
    --dashboard-agent-listen-port=0 --min-worker-port=0 --max-worker-port=0 &
  steps+=("$!")
}
alive() { "${on_head[@]}" ray status --address="$address" 2>/dev/null | grep -cE '^ *[0-9]+ node_' || true; }
wait_for() {
  local wanted=$1 deadline=$((SECONDS + patience)) found
  while found=$(alive); [ "$found" -lt "$wanted" ]; do
    all_steps || return 1
    [ "$SECONDS" -lt "$deadline" ] || die "$found of $wanted nodes were up within $patience s; raise ULTRAMED_RL_WAIT_S or look at the nodes"
    rest 2
  done
}

say "head $head ($address), ${#nodes[@]} nodes; to join: RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$token"
# Starts all; fails where a Ray ends first.
start_all() {
  steps=()
  # The dashboard listens on the head's loopback.
  start 1 --nodelist="$head" 0 --head --node-ip-address="$ip" --port="$port" --ray-client-server-port="$((port + 1))" \
    --dashboard-port="$((port + 2))" --temp-dir="$temporary"
  wait_for 1 || return 1
  if [ "${#nodes[@]}" -gt 1 ]; then start $((${#nodes[@]} - 1)) --exclude="$head" 5 --address="$address"; fi
  wait_for "${#nodes[@]}" || return 1
  rest 5  # a head that is up looks at its processes then, and ends if one of them has
  all_steps
}
# Ray gives its processes 30 s, which is short for a busy node.
for left in 2 1 0; do
  ! start_all || break
  [ "$left" -gt 0 ] || die "Ray ended on a node three times before all were up; its lines above say why"
  say "Ray ended on a node before all were up: started again"
  end_steps
done
say "all nodes are up; the dashboard is at http://127.0.0.1:$((port + 2)) of $head"

# --resume does no harm where there is nothing to resume: the same line begins a run and takes it up again.
RAY_ADDRESS=$address "${on_head[@]}" ultramed-rl "${command[@]}" "$config" "$@" --resume &
driver=$!
code=0
wait "$driver" || code=$?
driver=""
# A run that fails by itself would fail again; one that lost its Ray goes on with another.
[ "$code" -eq 0 ] || rest 5  # a step takes a moment to end
if [ "$code" -ne 0 ] && ! all_steps && [ "${SLURM_RESTART_COUNT:-0}" -lt "${ULTRAMED_RL_REQUEUES:-5}" ]; then
  queue_again "Ray was lost on a node"
fi
exit "$code"
