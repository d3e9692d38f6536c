# What the launchers share: options, quoting, dry runs, and starting a run again. Sourced, not run.
#
# A launcher names its options and switches, sets a variable of the same name for each, and defines
#   usage            prints the help
#   round LAUNCH     one attempt: everything from making hosts ready to waiting for the run; returns the run's code, and
#                    sets take_up to whether another one is to take the same LAUNCH up, since no host's process failed
#   why_again CODE   prints why an attempt that ended with CODE is worth another one, or fails
#   collect LAUNCH   brings the hosts' logs into $logs/LAUNCH
#   how_to_stop      says how to stop what goes on running on the hosts
# shellcheck shell=bash disable=SC2034,SC2154 # variables of the launchers

program=$(basename "$0")
run_options=(gin_file gin_search_paths module command env)
install_options=(python setup extras folder wheel)
restart_options=(max_restarts backoff_seconds logs)
command=train python=python3.11 setup="" extras="" folder=hyperflax-run wheel=""
max_restarts=100 backoff_seconds=30 logs=hyperflax-logs
dry_run=false skip_install=false reached=false take_up=false
gin_files=() arguments=() environment=()

run_usage() {
  cat <<'USAGE'
the run
  --gin_file FILE         gin file; repeat it, later ones win. hyperflax_gin_configs/runs/NAME.gin are hyperflax's own
  --gin.NAME=VALUE        gin binding, handed on as it is. MODEL_DIR is a folder that all hosts share, or in a bucket
  --gin_search_paths P    folders in which the hosts look for gin files
  --module MODULE         module of your own to import there, for its tasks; repeat it. It is not copied: --env
                          PYTHONPATH=FOLDER says where it lies
  --command COMMAND       train (default), evaluate, evaluate_suite or infer
  --env NAME=VALUE        environment variable of the run; repeat it
USAGE
}

install_usage() {
  cat <<USAGE
the installation
  --python PYTHON         Python 3.11 or newer, with venv, on the hosts (default: python3.11). Ubuntu 22.04 has 3.10
                          alone: --setup may install one
  --setup COMMAND         shell command run on each host first, before a restart again: it may mount the shared disk
  --extras EXTRAS         what to install beside the core (default: $extras), for example $extras,seqio
  --folder FOLDER         folder on each host, below its home directory and its own (default: hyperflax-run)
  --wheel FILE            install this wheel and build none
  --skip_install          the hosts are ready from an earlier call: only start the run
USAGE
}

restart_usage() {
  cat <<'USAGE'
restarts and logs
  --max_restarts N        how often a run that was cut short is started again (default: 100)
  --backoff_seconds S     pause before the first restart; it doubles up to 15 minutes (default: 30)
  --logs FOLDER           folder here for the hosts' logs (default: hyperflax-logs)

  --dry_run               print each command, ready to be pasted into a shell, and run none
  --help                  this text
USAGE
}

say() {
  echo "$program: $1" >&2
}

fail() {
  say "$1"
  echo "$program --help tells how it is used" >&2
  exit 2
}

# The arguments as one string that a shell reads back as the same words.
quoted() {
  local word out="" escaped="'\\''"
  for word in "$@"; do
    [[ $word =~ ^[A-Za-z0-9_./:=,@%+-]+$ ]] || word="'${word//\'/$escaped}'"
    out+="$word "
  done
  printf '%s' "${out% }"
}

# Runs a command, or prints it.
run() {
  if $dry_run; then
    quoted "$@"
    echo
  else
    "$@"
  fi
}

# In a dry run, a remark between the commands.
remark() {
  ! $dry_run || echo "# $1"
}

one_of() {
  local word=$1
  shift
  [[ " $* " == *" $word "* ]]
}

# Sets variables from "--option value", "--option=value" and "--switch". $options and $switches hold the names.
parse_options() {
  local option value
  while (($#)); do
    option=$1
    shift
    case $option in
      --help | -h) usage; exit 0 ;;
      --gin.*=*) arguments+=("$option"); continue ;;
      --gin.*) fail "$option: expected --gin.NAME=VALUE" ;;
      --*) ;;
      *) fail "unexpected argument '$option'" ;;
    esac
    if one_of "${option#--}" "${switches[@]}"; then
      printf -v "${option#--}" true
      continue
    fi
    value=${option#*=}
    option=${option%%=*}
    one_of "${option#--}" "${options[@]}" || fail "unknown option '$option'"
    if [[ $value == "$option" ]]; then
      (($#)) || fail "$option: expected a value after it"
      value=$1
      shift
    fi
    [[ -n $value ]] || fail "$option: expected a value, got an empty one"
    set_option "${option#--}" "$value"
  done
}

set_option() {
  case $1 in
    gin_file) gin_files+=("$2") ;;
    env)
      [[ $2 =~ ^[A-Za-z_][A-Za-z0-9_]*= ]] || fail "--env: expected NAME=VALUE, got '$2'"
      environment+=("$2")
      ;;
    create_flag) create_flags+=("$2") ;;
    gin_search_paths | module) arguments+=("--$1=$2") ;;
    *) printf -v "$1" %s "$2" ;;
  esac
}

check_options() {
  local option
  ((${#gin_files[@]})) || fail "--gin_file is missing: the run to start"
  [[ $command =~ ^(train|evaluate|evaluate_suite|infer)$ ]] ||
    fail "--command: expected train, evaluate, evaluate_suite or infer, got '$command'"
  [[ $folder =~ ^[A-Za-z0-9._][A-Za-z0-9._/-]*$ ]] || fail "--folder: expected a plain relative path, got '$folder'"
  [[ -z $wheel || -f $wheel ]] || fail "--wheel: no file '$wheel'"
  for option in "$@"; do
    [[ ${!option} =~ ^(0|[1-9][0-9]{0,8})$ ]] || fail "--$option: expected a whole number, got '${!option}'"
  done
}

# Gin files of this machine travel along and are named by their place over there: sets local_files and flags.
gather_gin_files() {
  local file base taken="|"
  local_files=() flags=()
  for file in "${gin_files[@]}"; do
    if [[ -f $file ]]; then
      base=${file##*/}
      [[ $taken != *"|$base|"* ]] || fail "--gin_file: two files are named '$base'"
      taken+="$base|"
      # With a folder before it, no name is taken for an option or for another host's.
      [[ $file == /* ]] || file=./$file
      local_files+=("$file")
      file=$base
    elif [[ $file != hyperflax_gin_configs/* ]]; then
      say "--gin_file: '$file' is no file here; the hosts look for it"
    fi
    flags+=("--gin_file=$file")
  done
  flags+=(--multiprocess ${arguments[@]+"${arguments[@]}"})
}

# Sets wheel, and builds it if it was not given.
build_wheel() {
  local version
  [[ -z $wheel ]] || return 0
  run make -C "$repository" wheel || return
  version=$(sed -n 's/^__version__ = "\(.*\)"$/\1/p' "$repository/hyperflax/__init__.py")
  wheel="$repository/dist/hyperflax-$version-py3-none-any.whl"
}

# Prints what installs the wheel on a host, as a shell command: with what it needs, then itself once more, since pip leaves
# what is installed under the same version as it is.
install_command() {
  local install=".venv/bin/python -m pip install --quiet"
  printf '%s' "cd $folder && $(quoted "$python") -m venv .venv" \
    " && $install --constraint core.lock $(quoted "./${wheel##*/}[$extras]")" \
    " && $install --no-deps --force-reinstall $(quoted "./${wheel##*/}")"
}

# Prints the job's command line: job PYTHON FLAG...
job() {
  local interpreter=$1
  shift
  quoted ${environment[@]+env "${environment[@]}"} "$interpreter" -m "hyperflax.$command" "${flags[@]}" "$@"
}

# Prints what runs the job on a host, as a shell command: host_command LAUNCH FLAG...
host_command() {
  local launch=$1
  shift
  printf '%s' "cd $folder && bash host.sh $launch $(job .venv/bin/python "$@")"
}

# The codes that ask for another attempt, wherever the run is; see hyperflax/cli/exit_codes.py. ssh itself says 255.
why_code() {
  case $1 in
    75) echo "the run was told to stop and is saved" ;;
    143) echo "the run was told to stop before it trained, or a host was started anew" ;;
    # Hosts that were never reached will not be, either.
    255) $reached && echo "the connection to a host broke" ;;
    *) return 1 ;;
  esac
}

# Calls `round` until the run is done, and exits with its code if it failed or was cut short too often.
run_rounds() {
  local restarts=0 pause=$backoff_seconds stamp launch began code reason
  # Two launches in one second must not take each other's run for their own: the number of the process tells them apart.
  stamp=$(date -u +%Y%m%dT%H%M%S)-$$
  trap 'interrupted 130' INT
  trap 'interrupted 143' TERM
  while :; do
    began=$SECONDS code=0
    $take_up || launch=$stamp-$restarts
    round "$launch" || code=$?
    collect "$launch"
    ((code)) || return 0
    reason=$(why_again "$code") || { say "the run failed with code $code; logs are in $logs"; exit "$code"; }
    if ((restarts >= max_restarts)); then
      say "$reason; given up after $restarts restarts (--max_restarts), with code $code"
      exit "$code"
    fi
    # A run that went well for an hour has earned a quick restart.
    ((SECONDS - began < 3600)) || pause=$backoff_seconds
    restarts=$((restarts + 1))
    say "$reason; restart $restarts of $max_restarts in $pause seconds"
    sleep "$pause"
    pause=$((pause < 450 ? 2 * pause : 900))
  done
}

# Nothing is sent to the hosts: they go on, or stop as a whole when they are told to.
interrupted() {
  local group
  trap - INT TERM
  for group in $(jobs -p); do kill -TERM -- "-$group" 2>/dev/null || true; done
  say "stopped waiting; what runs on the hosts goes on. To stop it, saved:"
  dry_run=true how_to_stop >&2
  say "The same command as before stops it, too, and starts it again from its last checkpoint."
  exit "$1"
}
