#!/usr/bin/env bash
# Trains on two hosts. Run the same line on both:
#
#     bash two_hosts.sh FIRST_HOST SECOND_HOST humanoid.yaml runs/humanoid [OPTIONS OF es-train]
#
# FIRST_HOST and SECOND_HOST are what `hostname` prints on them. Rank 0 is on the first host, which alone needs the
# configuration and holds the run directory. The hosts must reach each other on all TCP ports. After a failure, run the
# line again on both: "--resume auto" continues the run.

set -euo pipefail

if (($# < 4)); then
    echo "usage: bash two_hosts.sh FIRST_HOST SECOND_HOST CONFIG DIR [OPTIONS OF es-train]" >&2
    exit 2
fi
first=$1 second=$2 config=$3 out=$4
shift 4

case $(hostname) in
    "$first") node_rank=0 ;;
    "$second") node_rank=1 ;;
    *)
        echo "two_hosts.sh: this host is $(hostname), neither $first nor $second" >&2
        exit 2
        ;;
esac

# --node-rank and not a c10d rendezvous, which would give rank 0 to the host whose name sorts first.
# exec: a signal to this script goes to torchrun, which has the run saved.
exec torchrun --nnodes 2 --node-rank "$node_rank" --master-addr "$first" --master-port "${PORT:-29500}" \
    --nproc-per-node "${RANKS_PER_NODE:-1}" \
    --no-python es-train --config "$config" --out "$out" --resume auto "$@"
