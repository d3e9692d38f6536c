#!/usr/bin/env bash
# Runs on each host, in the folder of the run. The launchers copy it there.
#
#   bash host.sh LAUNCH COMMAND...  starts COMMAND so that it outlives the connection, shows what it prints and ends with
#                                   its exit code. If this LAUNCH runs or ran here already, because a connection broke,
#                                   it only waits for it; code 143 says that a reboot ended it, and 137 that something
#                                   killed it. What another launch left running is stopped first.
#   bash host.sh stop               stops what runs here: SIGTERM, so that it saves, and SIGKILL after STOP_SECONDS
#
# It keeps run.log, all that the commands printed; run.launch; run.pid, the machine's boot and the command's session;
# run.command, the command's own number; run.code, the exit code.
set -euo pipefail

boot=$(cat /proc/sys/kernel/random/boot_id)

# After a reboot the number may be another process's. What was started just now may have no group yet; what was killed may
# have left some of its group.
running() {
  local at pid
  [[ -f run.pid && ! -f run.code ]] || return 1
  read -r at pid <run.pid
  [[ $at == "$boot" ]] && { kill -0 "$pid" || kill -0 -- "-$pid"; } 2>/dev/null
}

stop() {
  local pid second tenth
  running || return 0
  pid=$(cut -d' ' -f2 run.pid)
  echo "host.sh: stopping $(<run.launch)"
  for ((tenth = 0; tenth < 100; tenth++)); do
    if [[ -f run.command ]] || ! running; then break; fi
    sleep 0.1
  done
  # Without the number, the shell that waits for the command tells it.
  kill -TERM "$(cat run.command 2>/dev/null || echo "$pid")" 2>/dev/null || kill -TERM -- "-$pid" 2>/dev/null || true
  for ((second = 0; second < ${STOP_SECONDS:-300}; second++)); do
    running || return 0
    sleep 1
  done
  echo "host.sh: it did not stop within ${STOP_SECONDS:-300} seconds; killed"
  kill -KILL -- "-$pid"
}

start() {
  rm -f run.code run.command
  echo "$1" >run.launch
  shift
  setsid bash "${BASH_SOURCE[0]}" hold "$@" </dev/null >/dev/null 2>&1 &
  echo "$boot $!" >run.pid
}

# In a session of its own, which a broken connection does not reach: waits for the command and keeps its exit code. A
# machine that shuts down sends SIGTERM to both, and SIGHUP right after it: the command has to hear the first once, for
# the second time it means "at once", and not to hear the other. A wait that SIGTERM interrupted has not waited.
hold() {
  local code signalled=false
  trap '' HUP
  trap 'signalled=true' TERM
  "$@" >>run.log 2>&1 &
  # On a full disk nobody learns the number, and this shell is told instead; one of an earlier version always is.
  { echo "$!" >.run.command && mv .run.command run.command; } || trap 'signalled=true; kill -TERM "$!" || true' TERM
  while :; do
    code=0
    wait "$!" || code=$?
    $signalled || break
    signalled=false
  done
  echo "$code" >.run.code
  mv .run.code run.code
}

# One line, read before the command runs: bash reads on in this file afterwards, and by then another launch may have copied
# another version over it.
if [[ $1 == hold ]]; then shift; hold "$@"; exit; fi
if [[ $1 == stop ]]; then
  stop
  exit
fi
touch run.log
if [[ ! -f run.launch || $(<run.launch) != "$1" ]]; then
  stop
  from=$(stat -c %s run.log)
  start "$@"
else
  from=$(stat -c %s run.log)
fi
! running || tail -c "+$((from + 1))" -f -s 0.5 "--pid=$(cut -d' ' -f2 run.pid)" run.log
if [[ ! -f run.code ]]; then
  if [[ $(cut -d' ' -f1 run.pid) != "$boot" ]]; then
    echo "host.sh: a reboot has ended the command"
    exit 143
  fi
  echo "host.sh: the command was killed together with the shell that waited for it"
  exit 137
fi
exit "$(<run.code)"
