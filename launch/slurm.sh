#!/usr/bin/env bash
#SBATCH --job-name=hyperflax
#SBATCH --ntasks-per-node=1
#SBATCH --output=hyperflax-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@300
# Launches a gin run on every node of a Slurm job. `launch/slurm.sh --help` tells how.
set -euo pipefail

# Slurm runs a copy of this file that lies elsewhere.
repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
[[ -f $repository/launch/common.sh ]] || repository=${SLURM_SUBMIT_DIR:-.}
if [[ ! -f $repository/launch/common.sh ]]; then
  echo "slurm.sh: no launch/common.sh in '$repository': submit the job from hyperflax's folder" >&2
  exit 2
fi
source "$repository/launch/common.sh"
program=slurm.sh

usage() {
  cat <<'USAGE'
usage: sbatch [sbatch's options] launch/slurm.sh --gin_file FILE [options] [--gin.NAME=VALUE]...

Starts one process per node, which has all of the node's GPUs; Slurm tells them where the others are. Submit it from
hyperflax's folder, with hyperflax installed for PYTHON on a disk that all nodes share. Five minutes before its time is
up, or when it is preempted, the run is saved and the job goes back into the queue, to go on from its last checkpoint.
Options may be written as `--option value` or `--option=value`.

USAGE
  run_usage
  cat <<'USAGE'

the nodes
  --python PYTHON         Python with hyperflax in it (default: .venv/bin/python)
  --setup COMMAND         shell command run on each node first, for example one that loads modules

restarts and logs
  --max_restarts N        how often the job goes back into the queue (default: 100)
  --logs FOLDER           folder for the nodes' logs (default: hyperflax-logs)

  --dry_run               print each command, ready to be pasted into a shell, and run none; without sbatch
  --help                  this text

A run on four nodes of eight GPUs:

  sbatch --nodes=4 --gpus-per-node=8 --time=24:00:00 launch/slurm.sh \
      --gin_file my_run.gin --gin.MODEL_DIR=/share/run1

The job ends with 0 or with the run's exit code; docs/launch.md explains them.
USAGE
}

options=("${run_options[@]}" python setup max_restarts logs)
switches=(dry_run)
python=.venv/bin/python
parse_options "$@"
check_options max_restarts

flags=()
for file in "${gin_files[@]}"; do flags+=("--gin_file=$file"); done
flags+=(--multiprocess ${arguments[@]+"${arguments[@]}"})
to=$logs/${SLURM_JOB_ID:-JOB}
task="${setup:+$setup && }exec $(job "$python")"
step=(srun --ntasks-per-node=1 "--output=$to/node-%n.log" --open-mode=append bash -c "$task")

if $dry_run; then
  run mkdir -p "$to"
  run "${step[@]}"
  remark "if it ended with 75 or 143, and the job was not cancelled:"
  run scontrol requeue "${SLURM_JOB_ID:-JOB}"
  exit
fi
[[ -n ${SLURM_JOB_ID:-} ]] || fail "there is no Slurm job: start it with sbatch, or try --dry_run"

# USR1 comes to this script alone; scancel hands SIGTERM to the tasks (srun would kill them). TERM, as at a preemption
# with a grace time, the tasks have got as well, and a second one would end them at once. A wait that a signal interrupted
# has not waited.
mkdir -p "$to"
"${step[@]}" &
pid=$!
signalled=false
trap 'signalled=true; scancel --signal=TERM "$SLURM_JOB_ID" || true' USR1
trap 'signalled=true' TERM
while :; do
  code=0
  wait "$pid" || code=$?
  $signalled || break
  signalled=false
done

((code)) || exit 0
reason=$(why_code "$code") || { say "the run failed with code $code; logs are in $to"; exit "$code"; }
# Only what is known to be another state keeps it from the queue: a controller may be too busy to answer.
state=$(squeue --noheader "--jobs=$SLURM_JOB_ID" --format=%T) || state=RUNNING
if [[ $state != RUNNING ]]; then
  say "$reason; the job is $state and not queued again"
elif ((${SLURM_RESTART_COUNT:-0} >= max_restarts)); then
  say "$reason; given up after $SLURM_RESTART_COUNT restarts (--max_restarts), with code $code"
else
  say "$reason; the job goes back into the queue"
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
