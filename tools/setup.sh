#!/bin/sh
# Installs what vulora needs on Debian 12 and its relatives: what is missing, nothing else. Usage: tools/setup.sh [--tests]
# Needs no network and no root when everything is there already.
set -eu

# The two lists of packages; README.md and the CI use them from here.
build_packages="gcc libc6-dev make cmake ninja-build pkg-config glslang-tools libvulkan-dev libopenblas-openmp-dev libjansson-dev
    libwebp-dev libexif-dev zlib1g-dev libstb-dev libutf8proc-dev"
test_packages="libcmocka-dev mesa-vulkan-drivers vulkan-validationlayers clang-format valgrind"

root=$(cd "$(dirname "$0")/.." && pwd)
say() { echo "setup: $*"; }
fail() {
    echo "setup: $*" >&2
    exit 1
}

packages=$build_packages
case ${1:-} in
'') ;;
--tests) packages="$packages $test_packages" ;;
*) fail "unknown argument $1; usage: tools/setup.sh [--tests]" ;;
esac
# Only to download CLIP's merges, which need downloading once.
[ -f "$root/third_party/bpe/bpe_simple_vocab_16e6.txt.gz" ] || packages="$packages python3-pip ca-certificates"

installed() { [ "$(dpkg-query --show --showformat='${db:Status-Status}' "$1" 2>/dev/null)" = installed ]; }

missing=
if command -v dpkg-query >/dev/null; then
    for package in $packages; do
        installed "$package" || missing="$missing $package"
    done
else
    say "this is no Debian; the build needs the equivalents of:" $packages
fi

if [ -n "$missing" ]; then
    if [ "$(id -u)" = 0 ]; then
        as_root=
    elif command -v sudo >/dev/null; then
        as_root=sudo
    else
        fail "these packages are missing, and this user can install none (no root, no sudo). As root: apt-get install$missing"
    fi
    say "installing$missing"
    apt() { $as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq -o Dpkg::Use-Pty=0 -o Acquire::Retries=3 "$@"; }
    apt update || fail "apt-get update failed; check the network, or install by hand:$missing"
    apt install --yes --no-install-recommends $missing >/dev/null || fail "apt-get could not install$missing"
fi

sh "$root/tools/fetch_bpe.sh"
say "everything is there"
