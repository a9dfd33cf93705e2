#!/bin/sh
# Builds vulora for use (Release) into build/. Usage: tools/build.sh [TARGET...]; without a target, everything.
set -eu

root=$(cd "$(dirname "$0")/.." && pwd)
build=$root/build
mkdir -p "$build"

# A folder that was configured before keeps its generator: cmake refuses another one.
generator="-G Ninja"
[ ! -f "$build/CMakeCache.txt" ] || generator=
# shellcheck disable=SC2086
if ! cmake -S "$root" -B "$build" $generator -DCMAKE_BUILD_TYPE=Release >"$build/configure.log" 2>&1; then
    cat "$build/configure.log" >&2
    echo "build: cmake could not configure $build; when it is left over from elsewhere, remove it and start again" >&2
    exit 1
fi
if [ $# -gt 0 ]; then
    cmake --build "$build" --parallel "$(nproc)" --target "$@"
else
    cmake --build "$build" --parallel "$(nproc)"
fi
