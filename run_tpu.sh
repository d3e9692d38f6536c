#!/usr/bin/env bash
# Launches a gin run on every host of a Cloud TPU slice. `./run_tpu.sh --help` tells how.
set -euo pipefail

repository=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
source "$repository/launch/common.sh"
source "$repository/launch/tpu_slice.sh"

usage() {
  cat <<'USAGE'
usage: run_tpu.sh --name NAME --zone ZONE --gin_file FILE [options] [--gin.NAME=VALUE]...

Makes or reuses the TPU slice NAME, builds hyperflax as a wheel, installs it on every host of the slice and starts one
process per host with the same command. A run that was preempted or told to stop is started again and goes on from its
last checkpoint. Options may be written as `--option value` or `--option=value`.

the slice
  --name NAME             name of the TPU VM, as in `gcloud compute tpus tpu-vm list`
  --zone ZONE             its zone, for example us-central2-b
  --project PROJECT       Google Cloud project (default: gcloud's own)
  --worker WORKER         which hosts: numbers, with commas between them (default: all)
  --internal_ip           reach the hosts by their internal addresses
  --create                make the slice if it is not there, and again when it was preempted; then these two are needed:
  --accelerator_type T    for example v4-32 or v5litepod-16
  --runtime_version V     for example tpu-ubuntu2204-base or v2-alpha-tpuv5-lite
  --spot                  a spot slice: cheaper, and may be preempted at any time
  --direct                make it at once or fail; by default a queued resource NAME waits until there is room
  --create_flag FLAG      a further flag of gcloud's create command, such as --reserved; repeat it
  --max_wait S            longest wait for the slice (default: 86400)
  --poll_seconds S        pause between two looks at its state (default: 30)
  --delete                delete the slice once the run has succeeded

USAGE
  run_usage
  echo
  install_usage
  echo
  restart_usage
  cat <<'USAGE'

A run on a slice of four hosts, overriding two macros:

  ./run_tpu.sh --name my-v4-32 --zone us-central2-b --create --accelerator_type v4-32 \
      --runtime_version tpu-ubuntu2204-base --spot --setup 'sudo mount 10.0.0.2:/runs /mnt' \
      --gin_file my_run.gin --gin.MODEL_DIR=/mnt/run1 --gin.TRAIN_STEPS=20000

Metrics and checkpoints go to MODEL_DIR; each host's output goes to this terminal, to FOLDER/run.log on that host, and at
the end to the folder --logs. It ends with 0 or with the run's exit code; docs/launch.md explains them.
USAGE
}

options=(name zone project worker accelerator_type runtime_version create_flag max_wait poll_seconds)
options+=("${run_options[@]}" "${install_options[@]}" "${restart_options[@]}")
switches=(internal_ip create spot direct delete skip_install dry_run)
name="" zone="" project="" worker=all accelerator_type="" runtime_version="" max_wait=86400 poll_seconds=30 extras=tpu
internal_ip=false create=false spot=false direct=false delete=false create_flags=()

on_hosts() {
  run gcloud compute tpus tpu-vm ssh "$name" "${reach[@]}" "--worker=$worker" "--command=$1"
}

copy_to_hosts() {
  run gcloud compute tpus tpu-vm scp "$@" "$name:$folder/" "${reach[@]}" "--worker=$worker"
}

prepare_hosts() {
  [[ -z $setup ]] || on_hosts "$setup" || return
  on_hosts "mkdir -p $folder" || return
  $skip_install || copy_to_hosts "$wheel" "$repository/requirements/core.lock" || return
  $skip_install || on_hosts "$(install_command)" || return
  # Another restart finds them as they are, unless the slice is a new one.
  skip_install=true
  copy_to_hosts "$repository/launch/host.sh" ${local_files[@]+"${local_files[@]}"} || return
  reached=true
}

round() {
  if $dry_run; then show_ensure_slice; else ensure_slice; fi
  prepare_hosts || return
  remark "the run; a dry run shows one attempt:"
  on_hosts "$(host_command "$1")"
}

why_again() {
  local state
  state=$(state_of tpu-vm)
  case $state in
    READY | UNREACHABLE) why_code "$1" ;;
    *) echo "$name is $state" ;;
  esac
}

# A slice that is gone took its logs along; what its hosts printed was shown here.
collect() {
  local number workers=${worker//,/ } from=$name:$folder/run.log to=$logs/$1
  if $dry_run; then
    workers=${workers/all/0}
    remark "the logs, of every host:"
  else
    [[ $(state_of tpu-vm) == READY ]] || return 0
    mkdir -p "$to"
  fi
  if [[ $workers == all ]]; then workers=$(seq 0 $(($(host_count) - 1))); fi
  for number in $workers; do
    run gcloud compute tpus tpu-vm scp "$from" "$to/worker-$number.log" "${reach[@]}" \
      "--worker=$number" || say "no log of worker $number"
  done
}

host_count() {
  gcloud compute tpus tpu-vm describe "$name" "${where[@]}" "--format=value(networkEndpoints.len())"
}

how_to_stop() {
  on_hosts "cd $folder && bash host.sh stop"
}

parse_options "$@"
[[ -n $name ]] || fail "--name is missing: the TPU slice to run on"
[[ -n $zone ]] || fail "--zone is missing: the zone of $name"
[[ $name != -* ]] || fail "--name: '$name' is no name of a TPU slice"
[[ $worker =~ ^(all|[0-9]+(,[0-9]+)*)$ ]] || fail "--worker: expected all or numbers, got '$worker'"
if $create; then
  [[ -n $accelerator_type ]] || fail "--accelerator_type is missing: what --create makes"
  [[ -n $runtime_version ]] || fail "--runtime_version is missing: of what --create makes"
fi
check_options max_wait poll_seconds max_restarts backoff_seconds
gather_gin_files
where=("--zone=$zone")
[[ -z $project ]] || where+=("--project=$project")
reach=("${where[@]}")
! $internal_ip || reach+=(--internal-ip)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

if ! $skip_install || $create; then build_wheel; fi
run_rounds
if $delete; then
  remark "the run has succeeded:"
  delete_slice
fi
