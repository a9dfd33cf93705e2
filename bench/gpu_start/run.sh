#!/bin/sh
# First and second start of all kernels of SD1.5 on cards that are not here, with AMD's production compiler (Mesa's RADV on a null device).
#   bench/gpu_start/run.sh [CARD...]     default: polaris10 navi21
# BUILD: a build folder to use; default: one in the user's cache.
set -e
source=$(cd "$(dirname "$0")/../.." && pwd)
build=${BUILD:-${XDG_CACHE_HOME:-$HOME/.cache}/vulora/gpu_static/build}
cmake -S "$source" -B "$build" -G Ninja >/dev/null
ninja -C "$build" gpu_start >/dev/null
for icd in /usr/share/vulkan/icd.d/radeon_icd*.json; do break; done
for card in ${*:-polaris10 navi21}; do
    kept=$(mktemp -d)
    echo "$card:"
    VK_ICD_FILENAMES=$icd RADV_FORCE_FAMILY=$card MESA_SHADER_CACHE_DISABLE=true XDG_CACHE_HOME=$kept \
        "$build/bench/gpu_start/gpu_start" "$card" 2>"$kept/messages" || { grep '^gpu_start' "$kept/messages" >&2; exit 1; }
    rm -r "$kept"
done
