#!/usr/bin/env bash
# All that only a GPU can show, in three calls; the first two take less than 15 minutes together.
#
#   benchmarks/gpu.sh first [OUT]     what needs no Warp: populations, forwards, figure 5             (at most 200 s)
#   benchmarks/gpu.sh second [OUT]    parity, generations, throughput, profile, training, scores      (at most 590 s)
#   benchmarks/gpu.sh third [OUT]     repeating, resuming, noise, native tasks, memory, a smaller lr  (at most 590 s)
#
# Each stage has a limit of its own (seconds, below); one that fails or is cut off does not end the others. The exit
# status is the number of stages that failed. OUT (benchmarks/results/gpu) gets at most eight files from the first two
# calls: a JSON for each measurement, and the logs, with the run that was trained, as logs_CALL.tgz; and at most four
# from the third. `python -m benchmarks.gpu.tables OUT` makes the tables of docs/benchmarks.md from them.
#
# From the environment: PYTHON (python3), ENV_ID (Humanoid-v5), NUM_ENVS (8192 2048 16384: the most important first),
# INIT_FROM (benchmarks/results/humanoid_long_run: training begins with its last policy if that fits), TRAIN_ARGS (more
# options of es-train), TOTAL (560: seconds that `second` and `third` plan with; unpacking and starting come on top).
# DEVICE=cpu QUICK=1 rehearses all of it without a GPU, on a small task and with limits four times as long; what it
# leaves is called quick_*.
#
# Without `pip install -e '.[gpu]'` it needs on PYTHONPATH: mujoco, mujoco-core, mujoco-warp, warp-lang, gymnasium,
# jsonargparse, docstring-parser, rich, tensorboard, pytest, pytest-timeout, hypothesis. Kernels that
# benchmarks/gpu/precompile_kernels.py has compiled into WARP_CACHE_PATH save minutes.
# shellcheck disable=SC2329 # the argument names the function that is called
set -uo pipefail
call=${1:-}
if [ "$call" != first ] && [ "$call" != second ] && [ "$call" != third ]; then
  echo "usage: benchmarks/gpu.sh first|second|third [OUT]" >&2
  exit 2
fi
device=${DEVICE:-cuda}
QUICK=${QUICK:-}
if { [ "$device" = cpu ] || [ -n "$QUICK" ]; } && [ -z "${2:-}" ]; then
  echo "a rehearsal needs a folder of its own: benchmarks/gpu.sh $call OUT" >&2
  exit 2
fi
out=$(realpath -m "${2:-$(dirname "$0")/results/gpu}")
cd "$(dirname "$0")/.." || exit 2
start=$SECONDS
python=${PYTHON:-python3}
env_id=${ENV_ID:-Humanoid-v5}
read -ra num_envs <<<"${NUM_ENVS:-8192 2048 16384}"
read -ra train_args <<<"${TRAIN_ARGS:-}"
init_from=${INIT_FROM:-benchmarks/results/humanoid_long_run}
export PYTHONPATH=${PYTHONPATH:+$PYTHONPATH:}$PWD PYTHONUNBUFFERED=1 MUJOCO_GL=${MUJOCO_GL:-egl}
work=build/gpu_$call # named in the commands that the results hold
rm -rf "$work"
mkdir -p "$out" "$work/log" || exit 2
failures=0

say() { echo "[$((SECONDS - start)) s] $*" | tee -a "$work/log/stages.txt"; }

stage() { # stage NAME LIMIT COMMAND...: an interrupt ends es-train as Ctrl-C does, and pytest with its report
  local name=$1 limit=$2 status=0
  shift 2
  [ -z "$QUICK" ] || limit=$((4 * limit)) # a rehearsal may run beside other work on two cores
  say "$name, at most $limit s"
  timeout --signal=INT --kill-after=5 "$limit" "$@" >"$work/log/$name.txt" 2>&1 || status=$?
  tail -n 25 "$work/log/$name.txt"
  say "$name: exit status $status"
  [ "$status" = 0 ] || [ "$name:$status" = train:124 ] || failures=$((failures + 1))
}

keep() { # keep FILE NAME: puts a stage's document among the results
  if [ -e "$1" ]; then cp "$1" "$out/${QUICK:+quick_}$2.json"; fi
}

pack() { tar -C "$work" -czf "$out/logs_$call.tgz" log; }

es() { # es COMMAND...: sets `command` to what runs es-COMMAND, installed or not
  local run='import importlib, sys; sys.exit(importlib.import_module("es_flipout.cli." + sys.argv[1]).main(sys.argv[2:]))'
  command=("$python" -c "$run" "$@")
}

train=(--config humanoid_gpu.yaml)

fits() { # fits RUN: whether training can begin with its last policy
  local build='import sys; from es_flipout.cli.arguments import parse_train; from es_flipout.run.trainer import Trainer'
  local small=(--device cpu --env.num_envs 1 --evaluation.interval 0)
  "$python" -c "$build; Trainer(parse_train(sys.argv[1:]).config).close()" "${train[@]}" "${train_args[@]}" "${small[@]}" \
    --init_from "$1" >"$work/log/fits.txt" 2>&1 && return
  say "no warm start from $1: $(tail -n 1 "$work/log/fits.txt")"
  return 1
}

tests=("$python" -m pytest -m gpu -q -p no:cacheprovider -W default -o timeout=120 --durations=10)

first() {
  local forwards=(--population-size 16384 4096 1024 --width 256 --depth 2 --max-gib 12 --rounds 5 --seconds 0.05)
  local updates=(--max-gib 16 --rounds 3 --seconds 0.2)
  if [ -n "$QUICK" ]; then
    forwards=(--population-size 32 16 --width 8 --depth 1 --rounds 2 --seconds 0.02)
    updates=(--hidden-sizes 32 --conv-scales 0.25 --samples 80 --rounds 2 --seconds 0.02)
  fi
  stage populations 50 "${tests[@]}" tests/test_gpu.py
  stage forwards 55 "$python" -m benchmarks.speed policy "${forwards[@]}" --device "$device" --json "$work/forwards.json"
  keep "$work/forwards.json" forwards
  stage update 55 "$python" -m benchmarks.speed update "${updates[@]}" --workers 0 --device "$device" \
    --json "$work/update.json"
  keep "$work/update.json" update
}

second() {
  local throughput=(--workers 1 "$(nproc)" --num-envs "${num_envs[@]}" --total 125)
  local profile=(--num-envs 8192 --population-size 16384 --max-episode-steps 40 --rounds 1 --kernels 40)
  local episodes=64
  if [ -n "$QUICK" ]; then
    env_id=InvertedPendulum-v5
    throughput=(--workers 1 2 --num-envs 4 2 --members-per-env 2 --pool-population-size 8 --hidden-sizes 8 --seconds 0.1)
    profile=(--num-envs 4 --population-size 8 --max-episode-steps 10 --rounds 1 --hidden-sizes 8)
    train_args+=(--env.id "$env_id" --env.kwargs '{max_episode_steps: 20}' --es.population_size 16 --env.num_envs 8
      --generations 2 --evaluation.episodes 2)
    episodes=2
  elif fits "$init_from"; then
    train_args=(--init_from "$init_from" "${train_args[@]}")
  fi
  stage smoke 40 "${tests[@]}" -x \
    tests/rollout/test_device.py::test_a_graph_replays_what_is_done_without_one \
    tests/envs/test_warp.py::test_recording_moves_nothing
  stage parity 105 "${tests[@]}" tests/envs/test_warp.py tests/rollout/test_device.py \
    tests/run/test_placement.py
  stage throughput 140 "$python" -m benchmarks.gpu.throughput --env "$env_id" "${throughput[@]}" --device "$device" \
    --json "$work/throughput.json"
  keep "$work/throughput.json" throughput
  stage profile 40 "$python" -m benchmarks.speed device --env "$env_id" "${profile[@]}" --device "$device" \
    --json "$work/profile.json"
  keep "$work/profile.json" profile
  # The time that is left, minus what ending, summarizing, scoring and packing may take.
  local left=$((${TOTAL:-560} - (SECONDS - start) - 95))
  es train "${train[@]}" --device "$device" --engine warp --out "$work/log/run" --evaluation.interval 5 \
    --logging.reporters '[jsonl]' "${train_args[@]}"
  stage train "$left" "${command[@]}"
  pack # with the policy, whatever may come
  stage summary 10 "$python" -m scripts.summarize_run "$work/log/run" --minutes 0.5 --device "$device" \
    --json "$work/train.json"
  keep "$work/train.json" train
  stage scores 60 "$python" -m benchmarks.compare_engines "$work/log/run" --episodes "$episodes" --device "$device" \
    --json "$work/engines.json"
  keep "$work/engines.json" engines
}

third() {
  local native=(--workers 1 --num-envs 256 --population-size 512 --rounds 2 --seconds 1)
  local tasks=(HalfCheetah-v5 Humanoid-v5)
  if [ -n "$QUICK" ]; then
    native=(--workers 1 --num-envs 4 --population-size 4 --hidden-sizes 8 --rounds 2 --seconds 0.1)
    tasks=(InvertedPendulum-v5)
    train_args+=(--env.id InvertedPendulum-v5 --env.kwargs '{max_episode_steps: 20}' --es.population_size 16
      --env.num_envs 8 --generations 2 --evaluation.episodes 2)
  elif fits "$init_from"; then
    train_args=(--init_from "$init_from" "${train_args[@]}")
  fi
  # On the H200 a Python process takes 9 to 15 s to start, and `resume` starts seven.
  stage repeating 40 "${tests[@]}" \
    tests/rollout/test_device.py::test_a_deterministic_engine_repeats_a_generation_to_the_last_bit \
    tests/envs/test_warp.py::test_contacts_are_sorted_however_they_were_found \
    tests/envs/test_warp.py::test_rows_are_sorted_however_they_were_found_and_contacts_follow
  stage resume 165 "${tests[@]}" tests/cli/test_gpu_runs.py -k "not memory"
  stage noise 55 "${tests[@]}" tests/stochastic/test_gpu_noise.py tests/benchmarks/test_paper_lstm.py \
    tests/benchmarks/test_large_batches.py
  for task in "${tasks[@]}"; do
    es bench throughput --env "$task" --env-kwargs '{max_episode_steps: 100}' "${native[@]}" --out "$work"
    stage "native_${task%-v5}" 55 "${command[@]}"
    keep "$work/throughput_$task.json" "native_${task%-v5}"
  done
  stage memory 50 "${tests[@]}" tests/cli/test_gpu_runs.py -k memory
  # The time that is left, minus what ending, summarizing and packing may take. With lr 9e-4 nothing was learned.
  local left=$((${TOTAL:-560} - (SECONDS - start) - 30))
  [ "$left" -ge 60 ] || left=60
  es train "${train[@]}" --device "$device" --engine warp --out "$work/log/run" --evaluation.interval 5 \
    --logging.reporters '[jsonl]' --optimizer.lr 2.0e-4 "${train_args[@]}"
  stage train "$left" "${command[@]}"
  pack
  stage summary 15 "$python" -m scripts.summarize_run "$work/log/run" --minutes 0.25 --device "$device" \
    --json "$work/train.json"
  keep "$work/train.json" small_lr
}

if [ "$device" != cpu ]; then
  nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader 2>&1 | tee "$work/log/gpu.txt"
fi
"$call"
say "$call: $failures stages failed or were cut off"
pack
ls -l "$out"
exit "$failures"
