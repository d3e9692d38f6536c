#!/usr/bin/env bash
# Launches a gin run on hosts that ssh reaches. `launch/gpu_hosts.sh --help` tells how.
set -euo pipefail

repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
source "$repository/launch/common.sh"

usage() {
  cat <<'USAGE'
usage: launch/gpu_hosts.sh --hosts HOST,HOST... --gin_file FILE [options] [--gin.NAME=VALUE]...

Builds hyperflax as a wheel, installs it on every host and starts one process per host, which has all of the host's GPUs.
The first host coordinates. A run that was told to stop, or whose connection broke, is started again and goes on from its
last checkpoint. Options may be written as `--option value` or `--option=value`.

the hosts
  --hosts HOST,HOST...    as ssh knows them, reached without a password
  --coordinator_address A HOST:PORT of the first host as the others reach it (default: the first host's name, 12321)

USAGE
  run_usage
  echo
  install_usage
  echo
  restart_usage
  cat <<'USAGE'

A run on two hosts:

  launch/gpu_hosts.sh --hosts gpu0,gpu1 --gin_file my_run.gin --gin.MODEL_DIR=/share/run1

Metrics and checkpoints go to MODEL_DIR; each host's output goes to this terminal, to FOLDER/run.log on that host, and at
the end to the folder --logs. It ends with 0 or with the run's exit code; docs/launch.md explains them.
USAGE
}

options=(hosts coordinator_address)
options+=("${run_options[@]}" "${install_options[@]}" "${restart_options[@]}")
switches=(skip_install dry_run)
hosts="" coordinator_address="" extras=cuda

on_host() {
  run ssh -n -o BatchMode=yes "$1" "$2"
}

copy_to_host() {
  local host=$1
  shift
  run scp -o BatchMode=yes -q "$@" "$host:$folder/"
}

make_folder() {
  local host=${names[$1]}
  [[ -z $setup ]] || on_host "$host" "$setup" || return
  on_host "$host" "mkdir -p $folder && echo $1 $host >$folder/.host"
}

# Hosts that share one home have one folder, with the number of the last of them in it, and would stop each other's process.
check_folder() {
  local host=${names[$1]} found
  found=$(on_host "$host" "cat $folder/.host") || return
  if $dry_run; then
    echo "$found"
  elif [[ $found != "$1 $host" ]]; then
    fail "--hosts: expected hosts with a home each, got $host and ${found#* } with the same $folder"
  fi
}

prepare_host() {
  if ! $skip_install; then
    copy_to_host "$1" "$wheel" "$repository/requirements/core.lock" || return
    on_host "$1" "$(install_command)" || return
  fi
  copy_to_host "$1" "$repository/launch/host.sh" ${local_files[@]+"${local_files[@]}"}
}

# Every host's output with its number before it, and its exit code as that of ssh.
start_host() {
  local number=$1 launch=$2
  on_host "${names[number]}" "$(host_command "$launch" "--coordinator_address=$coordinator_address" \
    "--process_count=${#names[@]}" "--process_index=$number")" 2>&1 | label "$number"
}

label() {
  if $dry_run; then cat; else sed -u "s/^/$1: /"; fi
}

# The code of a host that asks for a restart, since the others fail when they miss it; else the first that is not 0. Where
# nothing but connections ended, the run goes on or is done: the next round waits for it, and starts none.
round() {
  local number code result=0 pids=()
  for number in "${!names[@]}"; do make_folder "$number" || return; done
  for number in "${!names[@]}"; do check_folder "$number" || return; done
  for host in "${names[@]}"; do prepare_host "$host" || return; done
  skip_install=true reached=true take_up=true
  remark "the run, on all hosts at once; a dry run shows one attempt:"
  # With job control each of them has a process group of its own, which `interrupted` ends.
  set -m
  for number in "${!names[@]}"; do
    start_host "$number" "$1" &
    pids+=($!)
    ! $dry_run || wait "$!"
  done
  set +m
  for number in "${!pids[@]}"; do
    code=0
    wait "${pids[number]}" || code=$?
    ((code == 0)) || say "${names[number]} ended with code $code"
    one_of "$code" 0 255 || take_up=false
    if ((result == 0)) || why_code "$code" >/dev/null; then result=$code; fi
  done
  return "$result"
}

why_again() {
  why_code "$1"
}

collect() {
  local number to=$logs/$1
  remark "the logs:"
  $dry_run || mkdir -p "$to"
  for number in "${!names[@]}"; do
    run scp -o BatchMode=yes -q "${names[number]}:$folder/run.log" "$to/host-$number.log" ||
      say "no log of ${names[number]}"
  done
}

how_to_stop() {
  for host in "${names[@]}"; do
    on_host "$host" "cd $folder && bash host.sh stop"
  done
}

parse_options "$@"
[[ -n $hosts ]] || fail "--hosts is missing: where to run"
[[ $hosts =~ ^[A-Za-z0-9][A-Za-z0-9@._-]*(,[A-Za-z0-9][A-Za-z0-9@._-]*)*$ ]] ||
  fail "--hosts: expected names with commas between them, got '$hosts'"
check_options max_restarts backoff_seconds
gather_gin_files
IFS=, read -ra names <<<"$hosts"
coordinator_address=${coordinator_address:-${names[0]#*@}:12321}

$skip_install || build_wheel
run_rounds
