#!/usr/bin/env bash
# The comparison of docs/results.md on one GPU, at a budget worth reporting: plain MoCo v2, the default form, the
# authors' form and the controls; three seeds; trained on the whole training split, judged once on the test split.
#
#   recipes/bench/rationale_gpu.sh GROCERY runs/gpu           # GROCERY: class folders below train/ and test/
#   EPOCHS=50 SEEDS=0 recipes/bench/rationale_gpu.sh ...      # shorter
#
# A stopped run goes on when started again. Tables: OUTPUT/*/table.md; sheets of maps: OUTPUT/*.png.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
data=${1:?folder of photographs with train/ and test/}
output=${2:?folder for the results}
epochs=${EPOCHS:-200}
seeds=${SEEDS:-0,1,2}

grid() { # NAME OPTIONS...
    python "$here/rationale_grid.py" "$here/rationale_final.yaml" --final --seeds "$seeds" --output "$output/$1" "${@:2}"
    local cell
    cell=$(ls -d "$output/$1"/cells/default-seed* | head -n 1)
    python "$here/rationale_sheet.py" "$cell" --output "$output/$1.png" "${sheet[@]}"
}

sheet=(--data "$data")
for backbone in resnet18 resnet50; do
    grid "photographs-$backbone-scratch" --data "$data" --set backbone.name="$backbone" --set backbone.pretrained=false \
        --set backbone.image_size=192 --set training.epochs="$epochs"
    # published weights: needs the network once, or HF_HOME with them in it
    grid "photographs-$backbone-imagenet" --data "$data" --set backbone.name="$backbone" --set backbone.pretrained=true \
        --set backbone.image_size=192 --set training.epochs="$((epochs / 4 > 0 ? epochs / 4 : 1))"
done
sheet=()
grid demo --set training.epochs=48
