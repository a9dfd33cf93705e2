#!/bin/sh
# One training step of the demo model, text encoder included, on one picture under valgrind: no invalid access, nothing lost.
# Usage: tools/valgrind_step.sh [PROGRAM]
set -eu

root=$(cd "$(dirname "$0")/.." && pwd)
program=${1:-$root/build/vulora}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

mkdir "$work/picture"
set -- "$root"/datasets/demo/*.png
cp "$1" "$work/picture/"
# One thread: valgrind runs threads one after the other anyway.
OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive valgrind --quiet --error-exitcode=9 --leak-check=full --errors-for-leak-kinds=definite \
    "$program" train --model demo --data "$work/picture" --trigger zubi --cache-dir "$work/cache" --output "$work/adapter.safetensors" \
    --device cpu --threads 1 --resolution 64 --steps 1 --text-encoder-lr 1e-5
[ -s "$work/adapter.safetensors" ]
echo "valgrind: nothing found"
