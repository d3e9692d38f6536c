#!/usr/bin/env bash
# Makes what the shipped tuner was learnt from: data sets of four corpora, starts, and every fine-tuning run on them.
#
#   HYPERFLAX_NATURAL_INSTRUCTIONS=natural-instructions HYPERFLAX_METAICL=metaicl benchmarks/tuner_table.sh OUT [WORKERS]
#
# About four hours with two workers on two cores, each kept to a core of its own; OUT/runs is the table. Killed and
# called again it goes on. Needs taskset (Linux), hyperflax[tuner,seqio] and the two benchmarks' files.
set -euo pipefail
out=${1:?"expected a folder"} workers=${2:-2}
for name in HYPERFLAX_NATURAL_INSTRUCTIONS HYPERFLAX_METAICL; do
  folder=$(cd "${!name:?"expected a folder"}" && pwd)
  export "$name=$folder"
done
mkdir -p "$out"
cd "$out"

datasets() { hyperflax tune datasets --model strings "$@"; }
datasets --mixture strings --split fine_tuning --tasks 26 --longest 34 34 --out data/strings
datasets --module hyperflax_tasks.natural_instructions --mixture natural_instructions_train --split train \
  --tasks 12 --longest 34 34 --out data/natural_instructions
# What these settings hold of tasks with 128 examples that the byte-level model can read.
datasets --module hyperflax_tasks.metaicl --mixture metaicl_class_to_class --split train --out data/metaicl
datasets --module hyperflax_tasks.metaicl --mixture metaicl_non_class_to_class --split train --out data/metaicl
for text in animals elements materials music places planets programming units; do
  [ -d "data/questions/$text" ] ||
    hyperflax tune questions --text "$text" --facts 20 --seed 2 --out "data/questions/$text"
done

# Other tasks, for adapters to start from: one shared by all, and one of each.
datasets --mixture strings --split fine_tuning --tasks 10 --longest 34 34 --seed 1 --out sources/strings
hyperflax tune shared --model strings --data sources/strings/* --out shared
hyperflax tune bank --model strings --data sources/strings/* --out bank

pids=()
for ((worker = 0; worker < workers; worker++)); do
  taskset -c "$worker" hyperflax tune collect --model strings --shared shared --bank bank --data data/*/* \
    --structures 46 --variants 1 --out runs --shard "$worker/$workers" &
  pids+=($!)
done
for pid in "${pids[@]}"; do wait "$pid"; done
hyperflax tune report runs --out report
