# A TPU slice and its queued resource, which have one name: state, making, waiting, deleting. Sourced by run_tpu.sh.
#
# States of a slice: https://cloud.google.com/tpu/docs/reference/rest/v2/projects.locations.nodes#State
# and of a queued resource: https://cloud.google.com/tpu/docs/queued-resources
# shellcheck shell=bash disable=SC2034,SC2154 # variables of run_tpu.sh

# Prints the state of the tpu-vm or the queued-resources; ABSENT; or UNREACHABLE, with gcloud's words on stderr.
state_of() {
  local field=state answer
  [[ $1 == tpu-vm ]] || field=state.state
  if answer=$(gcloud compute tpus "$1" describe "$name" "${where[@]}" "--format=value($field)" 2>"$scratch/error"); then
    echo "${answer:-UNREACHABLE}"
  elif grep -q NOT_FOUND "$scratch/error"; then
    echo ABSENT
  else
    cat "$scratch/error" >&2
    echo UNREACHABLE
  fi
}

# Where the slice is not there yet, its queued resource says why.
slice_state() {
  local state
  state=$(state_of tpu-vm)
  [[ $state != ABSENT ]] || ! $create || $direct || state=$(state_of queued-resources)
  echo "$state"
}

create_slice() {
  local flags=("--accelerator-type=$accelerator_type")
  ! $spot || flags+=(--spot)
  flags+=(${create_flags[@]+"${create_flags[@]}"})
  if $direct; then
    run gcloud compute tpus tpu-vm create "$name" "${where[@]}" "--version=$runtime_version" "${flags[@]}" --quiet
  else
    run gcloud compute tpus queued-resources create "$name" "--node-id=$name" "${where[@]}" \
      "--runtime-version=$runtime_version" "${flags[@]}" --quiet
  fi
}

# A queued resource is deleted together with its slice; a slice of no queued resource is deleted alone.
delete_slice() {
  local queued=true
  if $dry_run; then
    ! $direct || queued=false
  elif [[ $(state_of queued-resources) == ABSENT ]]; then
    queued=false
  fi
  if $queued; then
    run gcloud compute tpus queued-resources delete "$name" "${where[@]}" --force --quiet
  else
    run gcloud compute tpus tpu-vm delete "$name" "${where[@]}" --quiet
  fi
}

# Returns when the slice is READY: the one that is there, or a new one, which wants the installation.
ensure_slice() {
  local state shown="" blind=0 deadline=$((SECONDS + max_wait))
  while :; do
    state=$(slice_state)
    [[ $state == UNREACHABLE ]] || blind=0
    case $state in
      READY) return ;;
      ABSENT)
        $create || fail "there is no TPU slice '$name'; --create makes it"
        say "creating $name"
        create_slice || exit
        skip_install=false
        ;;
      PREEMPTED | TERMINATED | FAILED | SUSPENDED)
        $create || fail "$name is $state and cannot be used again; --create replaces it"
        say "$name is $state: deleting it"
        delete_slice || exit
        continue
        ;;
      UNREACHABLE) ((++blind < 3)) || { say "gcloud failed three times in a row"; exit 1; } ;;
      CREATING | STARTING | RESTARTING | REIMAGING | REPAIRING | STOPPING | DELETING | HIDING | UNHIDING) ;;
      ACCEPTED | WAITING_FOR_RESOURCES | PROVISIONING | ACTIVE | SUSPENDING) ;;
      *) fail "$name is $state: start it or delete it" ;;
    esac
    if ((SECONDS >= deadline)); then
      say "$name is $state after $max_wait seconds (--max_wait); the same command goes on waiting"
      exit 75
    fi
    [[ $state == "$shown" || $state == ABSENT ]] || say "$name is $state"
    shown=$state
    sleep "$poll_seconds"
  done
}

show_ensure_slice() {
  local describe=(gcloud compute tpus tpu-vm describe "$name" "${where[@]}" "--format=value(state)")
  remark "the state of the slice:"
  run "${describe[@]}"
  if $create; then
    remark "if it is PREEMPTED or TERMINATED:"
    delete_slice
    remark "if it is not there:"
    create_slice
  fi
  remark "every $poll_seconds seconds until it is READY:"
  run "${describe[@]}"
}
