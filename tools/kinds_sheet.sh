#!/usr/bin/env bash
# Every kind of adapter on the demo model: trains the sample subject with each from the same pictures and seed, and draws the same prompts with all of
# them on one sheet, out/kinds.png. Usage: bash tools/kinds_sheet.sh [KIND...] [-- more options of `vulora train`, such as --steps 800 or --threads 1]
# Files that are there already are not made again; VULORA names another program than the one in build/.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
vulora=${VULORA:-$root/build/vulora}
out=$root/out/kinds
drawing=(--steps 20 --cfg 5)

# SEED|PROMPT; the subject was never shown there, and the last prompt does not ask for it.
columns=(
    '11|a photo of zubi creature under water'
    '12|a photo of zubi creature in the snow'
    '14|zubi creature in the snow'
    '16|a blue house in the snow'
)

# The best of the learning rates tried (400 steps of one picture): what a kind trains begins at very different sizes.
rate_of() {
    case $1 in
    ia3) echo 3e-2 ;;
    norm) echo 1e-2 ;;
    lokr | dylora) echo 3e-3 ;;
    full | loha) echo 3e-4 ;;
    boft) echo 1e-4 ;;
    *) echo 1e-3 ;;
    esac
}

kinds=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do kinds+=("$1") && shift; done
[ $# -eq 0 ] || shift
# All that the program knows, in its order.
[ ${#kinds[@]} -gt 0 ] || read -ra kinds <<<"$("$vulora" train --kind none 2>&1 | sed -n 's/.*Known: //p' | tr -d ,)"

# draw ROW [OPTION...]: every prompt, into out/kinds/ROW-1.png, ...
draw() {
    local row=$1 number=0 column
    shift
    for column in "${columns[@]}"; do
        number=$((number + 1))
        [ -f "$out/$row-$number.png" ] || "$vulora" generate --quiet --model demo "$@" --prompt "${column#*|}" --seed "${column%%|*}" \
            "${drawing[@]}" --output "$out/$row-$number.png"
        cells+=("$out/$row-$number.png")
    done
}

mkdir -p "$out"
captions=()
for column in "${columns[@]}"; do captions+=("${column#*|}"); done
cells=("base")
draw base
for kind in "${kinds[@]}"; do
    rate=$(rate_of "$kind")
    echo "$kind, learning rate $rate"
    [ -f "$out/$kind.safetensors" ] || "$vulora" train --quiet --model demo --data "$root/datasets/demo" --kind "$kind" --lr "$rate" --steps 400 \
        --output "$out/$kind.safetensors" "$@"
    cells+=("$kind $rate")
    draw "$kind" --lora "$out/$kind.safetensors"
done
"${CONTACT_SHEET:-$(dirname "$vulora")/contact_sheet}" "$root/out/kinds.png" "${#columns[@]}" "${captions[@]}" "${cells[@]}"
echo "$root/out/kinds.png"
