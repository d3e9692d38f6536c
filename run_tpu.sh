#!/usr/bin/env bash
# Launches a gin run on every host of a Cloud TPU slice. `./run_tpu.sh --help` tells how.
set -euo pipefail

usage() {
  cat <<'USAGE'
usage: run_tpu.sh --name NAME --zone ZONE --gin_file FILE [options] [--gin.NAME=VALUE]...

Builds hyperflax as a wheel, copies it to every host of the TPU slice NAME, installs it there and starts one process per
host with the same command. The slice must exist; nothing is created and nothing is deleted. Options may be written as
`--option value` or `--option=value`.

the slice
  --name NAME             name of the TPU VM, as in `gcloud compute tpus tpu-vm list`
  --zone ZONE             its zone, for example us-central2-b
  --project PROJECT       Google Cloud project (default: gcloud's own)
  --worker WORKER         which hosts (default: all)
  --internal_ip           reach the hosts by their internal addresses

the run
  --gin_file FILE         gin file; repeat it, later ones win. A file that exists here is copied to the hosts; any other
                          is looked for there: hyperflax_gin_configs/runs/NAME.gin are hyperflax's own
  --gin.NAME=VALUE        gin binding, handed on as it is
  --gin_search_paths P    folders in which the hosts look for gin files
  --module MODULE         module of your own to import there, for its tasks; repeat it
  --command COMMAND       train (default), evaluate or infer

the installation
  --python PYTHON         Python 3.11 or newer on the hosts (default: python3.11)
  --setup COMMAND         shell command run on each host first, for example one that installs Python
  --extras EXTRAS         what to install beside the core (default: tpu), for example tpu,seqio
  --folder FOLDER         folder on each host, below the home directory (default: hyperflax-run)
  --wheel FILE            install this wheel and build none
  --skip_install          the hosts are ready from an earlier call: only start the run

  --dry_run               print each command, ready to be pasted into a shell, and run none
  --help                  this text

A run on a slice of four hosts, overriding two macros:

  ./run_tpu.sh --name my-v4-32 --zone us-central2-b --gin_file hyperflax_gin_configs/runs/strings.gin \
      --gin.MODEL_DIR=gs://my-bucket/run1 --gin.BATCH_SIZE=256

Metrics and checkpoints go to MODEL_DIR; each host's output goes to this terminal and to FOLDER/run.log on that host.
Starting the same command again resumes at the last checkpoint.
USAGE
}

fail() {
  echo "run_tpu.sh: $1" >&2
  echo "run_tpu.sh --help tells how it is used" >&2
  exit 2
}

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
name="" zone="" project="" worker="all" command="train" python="python3.11" setup="" extras="tpu"
folder="hyperflax-run" wheel="" install=true dry_run=false internal_ip=false
gin_files=() arguments=()

while (($#)); do
  option=$1
  shift
  case $option in
    --help | -h) usage; exit 0 ;;
    --dry_run) dry_run=true; continue ;;
    --skip_install) install=false; continue ;;
    --internal_ip) internal_ip=true; continue ;;
    --gin.*=*) arguments+=("$option"); continue ;;
    --gin.*) fail "$option: expected --gin.NAME=VALUE" ;;
    --*=*) value=${option#*=} option=${option%%=*} ;;
    --*)
      (($#)) || fail "$option: expected a value after it"
      value=$1
      shift
      ;;
    *) fail "unexpected argument '$option'" ;;
  esac
  [[ -n $value ]] || fail "$option: expected a value, got an empty one"
  case $option in
    --name) name=$value ;;
    --zone) zone=$value ;;
    --project) project=$value ;;
    --worker) worker=$value ;;
    --gin_file) gin_files+=("$value") ;;
    --gin_search_paths | --module) arguments+=("$option=$value") ;;
    --command) command=$value ;;
    --python) python=$value ;;
    --setup) setup=$value ;;
    --extras) extras=$value ;;
    --folder) folder=$value ;;
    --wheel) wheel=$value ;;
    *) fail "unknown option '$option'" ;;
  esac
done

[[ -n $name ]] || fail "--name is missing: the TPU slice to run on"
[[ -n $zone ]] || fail "--zone is missing: the zone of $name"
((${#gin_files[@]})) || fail "--gin_file is missing: the run to start"
[[ $name != -* ]] || fail "--name: '$name' is no name of a TPU slice"
[[ $command =~ ^(train|evaluate|infer)$ ]] || fail "--command: expected train, evaluate or infer, got '$command'"
[[ $folder =~ ^[A-Za-z0-9._][A-Za-z0-9._/-]*$ ]] || fail "--folder: expected a plain relative path, got '$folder'"
[[ -z $wheel || -f $wheel ]] || fail "--wheel: no file '$wheel'"

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

where=("--zone=$zone")
[[ -z $project ]] || where+=("--project=$project")
! $internal_ip || where+=("--internal-ip")

on_hosts() {
  run gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" "--worker=$worker" "--command=$1"
}

copy_to_hosts() {
  run gcloud compute tpus tpu-vm scp "$@" "$name:$folder/" "${where[@]}" "--worker=$worker"
}

# Gin files of this machine travel along and are named by their place over there.
local_files=() flags=() taken="|"
for file in "${gin_files[@]}"; do
  if [[ -f $file ]]; then
    base=$(basename "$file")
    [[ $taken != *"|$base|"* ]] || fail "--gin_file: two files are named '$base'"
    taken+="$base|"
    local_files+=("$file")
    file=$base
  fi
  flags+=("--gin_file=$file")
done
flags+=(--multiprocess ${arguments[@]+"${arguments[@]}"})

if $install; then
  [[ -z $setup ]] || on_hosts "$setup"
  on_hosts "mkdir -p $folder"
  if [[ -z $wheel ]]; then
    run make -C "$here" wheel
    version=$(sed -n 's/^__version__ = "\(.*\)"$/\1/p' "$here/hyperflax/__init__.py")
    wheel="$here/dist/hyperflax-$version-py3-none-any.whl"
  fi
  copy_to_hosts "$wheel" "$here/requirements/core.lock"
  on_hosts "cd $folder && $(quoted "$python") -m venv .venv && .venv/bin/python -m pip install --quiet \
--constraint core.lock $(quoted "./$(basename "$wheel")[$extras]")"
else
  on_hosts "mkdir -p $folder"
fi

((${#local_files[@]} == 0)) || copy_to_hosts "${local_files[@]}"
on_hosts "set -o pipefail; cd $folder && .venv/bin/python -m hyperflax.$command $(quoted "${flags[@]}") 2>&1 | tee -a run.log"
