#!/bin/sh
# Train heads on Google's emoji; measure on Twitter's drawings of the same concepts, which training never saw.
set -eu
columns="--columns.key key --columns.item item"
run=${1:-runs/finetune_emoji}

isthmus corpus emoji-google --out "$run/google" --cache "$run/packages"
isthmus corpus emoji-twitter --out "$run/twitter" --cache "$run/packages"
isthmus finetune "$run/google" --encoder efficientnet-lite0+use-multilingual --out "$run/encoder" $columns
isthmus evaluate "$run/twitter" --encoder "$run/encoder"
isthmus embed "$run/twitter" --table "$run/db/twitter" --encoder "$run/encoder" $columns
isthmus search "$run/db/twitter" "a happy face" -k 12 --distinct --html "$run/happy.html"
