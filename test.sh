#!/usr/bin/env bash
# Builds everything and runs every test, on the CPU and on a software Vulkan device. Usage: bash test.sh [more options of ctest]
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
sh "$root/tools/setup.sh" --tests
sh "$root/tools/build.sh"
# Tests use as many threads as there are processors; two at a time keep them busy where one waits.
ctest --test-dir "$root/build" --output-on-failure --parallel 2 "$@"
