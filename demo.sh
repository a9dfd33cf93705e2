#!/usr/bin/env bash
# The whole path on the demo model: trains a LoRA of the sample subject, then draws the same prompts and seeds without and with it.
# Usage: bash demo.sh [more options of `vulora train`, such as --steps 300 or --device vulkan]
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
out=$root/out
adapter=$out/zubi.safetensors
sheet=$out/demo.png
vulora=$root/build/vulora
drawing=(--steps 20 --cfg 5)

# SEED|PROMPT, one for each column of the sheet. The sample pictures never show the subject under water or in the snow; the last two
# prompts do not ask for it.
columns=(
    '11|a photo of zubi creature under water'
    '12|a photo of zubi creature in the snow'
    '13|zubi creature under water'
    '14|zubi creature in the snow'
    '15|a photo of a red ball under water'
    '16|a blue house in the snow'
)

step() { printf '\n== %s\n' "$*"; }

# draw ROW [OPTION...]: every prompt, into out/ROW-1.png, out/ROW-2.png, ...
draw() {
    local row=$1 number=0 column
    shift
    for column in "${columns[@]}"; do
        number=$((number + 1))
        echo "$row $number of ${#columns[@]}: ${column#*|}"
        "$vulora" generate --quiet --model demo "$@" --prompt "${column#*|}" --seed "${column%%|*}" "${drawing[@]}" \
            --output "$out/$row-$number.png"
    done
}

# row LABEL ROW: the row's arguments for contact_sheet, into the array cells.
row() {
    local number
    cells+=("$1")
    for number in "${!columns[@]}"; do cells+=("$out/$2-$((number + 1)).png"); done
}

if [ ! -f "$root/models/demo.safetensors" ]; then
    echo "demo.sh: models/demo.safetensors is missing; it belongs to the repository: git checkout -- models" >&2
    exit 1
fi

step "1 of 4: what the build needs"
sh "$root/tools/setup.sh"

step "2 of 4: building"
sh "$root/tools/build.sh" vulora contact_sheet

step "3 of 4: training a LoRA of the subject in datasets/demo"
mkdir -p "$out"
rm -f "$out"/base-*.png "$out"/adapter-*.png "$sheet"
"$vulora" train --model demo --data "$root/datasets/demo" --output "$adapter" "$@"

step "4 of 4: drawing the same prompts and seeds without and with the adapter"
draw base
draw adapter --lora "$adapter"
captions=()
for column in "${columns[@]}"; do captions+=("${column#*|}"); done
cells=()
row "base" base
row "with adapter" adapter
"$root/build/contact_sheet" "$sheet" "${#columns[@]}" "${captions[@]}" "${cells[@]}"

step "done in $((SECONDS / 60)) min $((SECONDS % 60)) s"
echo "adapter:       $adapter"
echo "contact sheet: $sheet (upper row: the base model, lower row: with the adapter)"
