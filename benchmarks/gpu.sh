#!/usr/bin/env bash
# What only a GPU can show, in stages of less than ten minutes each.
#
#   benchmarks/gpu.sh STAGE [OUT]
#
# STAGE   tests       populations, graphs and generations on the GPU (pytest -m gpu), but for:
#         parity      every task of engine warp against the official environments
#         throughput  engine warp by number of slots, beside one process of the pool and the CPU's vectorised engine
#         cores       the process pool by number of processes, beside the best number of slots
#         update      the paper's networks        policy      forwards and noise by population
#         profile     where the time goes         train       Humanoid; continues the run in $RUN, if it is there
#         all         all of them, one after the other
# OUT     folder for JSON, pictures and logs; benchmarks/results if absent, but for a rehearsal.
#
# From the environment: PYTHON (python3), ENV (Humanoid-v5), SLOTS (1024 .. 32768), BEST_SLOTS (8192),
# SECONDS_EACH (5) and ROUNDS (3) of throughput and cores, TRAIN_SECONDS (480), RUN ($OUT/run), TRAIN_ARGS.
# DEVICE=cpu with small sizes and QUICK=1 rehearses it all without a GPU.
# Without `pip install -e '.[gpu]'` it needs on PYTHONPATH: mujoco, mujoco-core, mujoco-warp, warp-lang, gymnasium,
# jsonargparse, docstring-parser, rich, tensorboard, matplotlib, pytest, pytest-timeout, hypothesis.
set -euo pipefail
cd "$(dirname "$0")/.."

stage=${1:-}
out=${2:-benchmarks/results}
python=${PYTHON:-python3}
env=${ENV:-Humanoid-v5}
read -ra slots <<<"${SLOTS:-1024 2048 4096 8192 16384 32768}"
best=${BEST_SLOTS:-8192}
timing=(--seconds "${SECONDS_EACH:-5}" --rounds "${ROUNDS:-3}")
run=${RUN:-$out/run}
device=${DEVICE:-cuda}
read -ra train_args <<<"${TRAIN_ARGS:-}"
if [ -n "${QUICK:-}" ]; then
  sizes=(--quick)
  pool=(--quick --warp-device "$device")
  profiled=(--rounds 1 --population-size 8 --max-episode-steps 10 --hidden-sizes 8)
else
  sizes=(--max-gib 16)
  # The fewer members a slot, the more slots wait for the last episodes of a generation.
  pool=(--hidden-sizes 256 256 --slots 256 --warp-device "$device" --warp-members-a-slot 8 "${timing[@]}")
  profiled=(--kernels 40)
fi
export PYTHONPATH=${PYTHONPATH:+$PYTHONPATH:}$PWD
export MUJOCO_GL=${MUJOCO_GL:-egl}
case $stage in
  tests | parity | throughput | cores | update | policy | profile | train | all) ;;
  *)
    echo "usage: benchmarks/gpu.sh tests|parity|throughput|cores|update|policy|profile|train|all [OUT]" >&2
    exit 2
    ;;
esac
if [ "$device" != cpu ]; then
  "$python" -c 'import sys, torch; sys.exit(None if torch.cuda.is_available() else "torch sees no CUDA device")'
elif [ -z "${2:-}" ]; then
  echo "a rehearsal on the CPU needs a folder of its own: benchmarks/gpu.sh $stage OUT" >&2
  exit 2
fi
mkdir -p "$out"

es() { # es COMMAND ARGUMENT...: es-COMMAND, installed or not
  "$python" -c 'import importlib, sys; sys.exit(importlib.import_module("es_flipout.cli." + sys.argv[1]).main(sys.argv[2:]))' "$@"
}

named() { # named NAME: gives the files that a bench has just written to $out/.new the name NAME
  for file in "$out"/.new/*; do mv "$file" "$out/$1.${file##*.}"; done
  rmdir "$out/.new"
}

test_here() { # test_here FILE...: warnings of another machine's packages are no failures, and kernels are compiled
  "$python" -m pytest -m gpu -q -p no:cacheprovider -W default -o timeout=900 "$@"
}

stage_tests() {
  test_here tests/test_gpu.py tests/evaluators/test_on_device.py tests/evaluators/test_placement.py 2>&1 | tee "$out/gpu_tests.txt"
}

stage_parity() {
  test_here tests/envs/test_warp.py 2>&1 | tee "$out/gpu_parity.txt"
}

stage_throughput() {
  es bench throughput "${pool[@]}" --env "$env" --workers 1 --warp-slots "${slots[@]}" --out "$out/.new"
  named "throughput_gpu_$env"
}

stage_cores() {
  es bench throughput "${pool[@]}" --env "$env" --warp-slots "$best" --out "$out/.new"
  named "throughput_gpu_cores_$env"
}

stage_update() {
  es bench update "${sizes[@]}" --device "$device" --out "$out"
}

stage_policy() {
  local members=(--population-size 16384 1024 4096)
  if [ -n "${QUICK:-}" ]; then members=(); fi
  es bench policy "${sizes[@]}" "${members[@]}" --device "$device" --out "$out"
}

stage_profile() {
  "$python" -m scripts.profile_device "${profiled[@]}" --env "$env" --num-slots "$best" --device "$device" \
    --json "$out/profile_gpu_$env.json"
}

stage_train() {
  local what=(--config humanoid_gpu.yaml --device "$device" --engine warp --out "$run" "${train_args[@]}")
  if [ -e "$run/config.yaml" ]; then what=(--resume "$run"); fi
  # An interrupt ends a run as Ctrl-C does: it saves, and can be continued.
  local status=0
  timeout --signal=INT "${TRAIN_SECONDS:-480}" "$python" -c \
    'import sys; from es_flipout.cli.train import main; sys.exit(main(sys.argv[1:]))' "${what[@]}" || status=$?
  if [ "$status" != 0 ] && [ "$status" != 124 ]; then return "$status"; fi
  "$python" -m scripts.summarize_run "$run" --device "$device" --json "$out/train_gpu.json"
  "$python" -m scripts.compare_engines "$run" --episodes "${EPISODES:-100}" --device "$device" \
    --json "$out/engines_gpu.json"
}

if [ "$stage" = all ]; then
  status=0
  for each in tests parity throughput cores update policy profile train; do
    benchmarks/gpu.sh "$each" "$out" || status=1
  done
  exit "$status"
fi
"stage_$stage"
