#!/bin/sh
# One command: what AMD's production compiler makes of every kernel that SD1.5 launches, for cards that are not here.
#
#   bench/gpu_static/run.sh [TEXT]       only cases or kernels with TEXT in their name;  GPUS="navi21" picks cards
#
# Needs Debian 12 with mesa-vulkan-drivers (22.3.6: polaris10, navi21). For navi31 it fetches Mesa from the bookworm-backports suite of the mirror
# that apt already uses (25.0.7 when the targets were set) and unpacks it in the user's cache, beside a GLSL compiler for matrix kernels
# (cmake/fetch_glslang.sh) and the build. Nothing is installed, nothing is written into the source tree. Exit status 1: a kernel is below its target or spills.
set -e
source=$(cd "$(dirname "$0")/../.." && pwd)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/vulora/gpu_static
mkdir -p "$cache"

system_icd() {
    for icd in /usr/share/vulkan/icd.d/radeon_icd*.json; do [ -f "$icd" ] && echo "$icd" && return; done
    echo "run.sh: no RADV here; install mesa-vulkan-drivers" >&2
    return 1
}

# The newest RADV of bookworm-backports, private.
backports_icd() {
    mesa=$cache/mesa
    if [ ! -f "$mesa/radeon.json" ]; then
        mkdir -p "$mesa/lists/partial"
        mirror=$(apt-get indextargets --format '$(REPO_URI) $(RELEASE)' | awk '$2 == "bookworm" { print $1; exit }')
        [ -n "$mirror" ] || { echo "run.sh: apt knows no mirror of Debian bookworm" >&2; return 1; }
        echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror bookworm-backports main" >"$mesa/sources.list"
        options="-qq -o Dir::Etc::SourceList=$mesa/sources.list -o Dir::Etc::SourceParts=- -o Dir::State::Lists=$mesa/lists -o APT::Sandbox::User=root"
        (cd "$mesa" && apt-get $options update && apt-get $options download mesa-vulkan-drivers && dpkg -x mesa-vulkan-drivers_*.deb root) >&2
        sed "s|\"library_path\": \".*libvulkan_radeon|\"library_path\": \"$mesa/root/usr/lib/x86_64-linux-gnu/libvulkan_radeon|" \
            "$mesa"/root/usr/share/vulkan/icd.d/radeon_icd*.json >"$mesa/radeon.json"
    fi
    echo "$mesa/radeon.json"
}

# Runs one card: CARD ICD DRIVER-VERSION
card() {
    echo "$1: Mesa $3"
    VK_ICD_FILENAMES=$2 RADV_FORCE_FAMILY=$1 MESA_SHADER_CACHE_DISABLE=true \
        "$cache/build/bench/gpu_static/gpu_static" "$1" ${only:+"$only"} 2>"$cache/messages.txt" || failed=1
    grep '^gpu_static:' "$cache/messages.txt" >&2 || true
}

"$source/cmake/fetch_glslang.sh" >/dev/null || echo "run.sh: no compiler for matrix kernels; navi31 is judged without" >&2
cmake -S "$source" -B "$cache/build" -G Ninja >"$cache/build.txt"
ninja -C "$cache/build" gpu_static >"$cache/build.txt" 2>&1 || { tail -n 20 "$cache/build.txt" >&2; exit 2; }

only=$1
failed=0
for gpu in ${GPUS:-polaris10 navi21 navi31}; do
    case $gpu in
    navi3*) icd=$(backports_icd) version=$(basename "$cache"/mesa/mesa-vulkan-drivers_*.deb | cut -d_ -f2) ;;
    *) icd=$(system_icd) version=$(dpkg-query -W -f '${Version}' mesa-vulkan-drivers) ;;
    esac
    card "$gpu" "$icd" "$version"
done
exit $failed
