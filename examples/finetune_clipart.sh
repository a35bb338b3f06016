#!/bin/sh
# Train heads on clip arts with titles and tags; measure on emoji: other drawings, other words, English and Chinese.
set -eu
columns="--columns.key key --columns.item item"
run=${1:-runs/finetune_clipart}

isthmus corpus openclipart --out "$run/clipart" --captions label+tags
isthmus corpus emoji-google --out "$run/emoji"
isthmus finetune "$run/clipart" --encoder efficientnet-lite0+use-multilingual --out "$run/encoder" $columns
isthmus evaluate "$run/emoji" --encoder "$run/encoder"
isthmus embed "$run/clipart" --table "$run/db/clipart" --encoder "$run/encoder" $columns
isthmus search "$run/db/clipart" "a sleeping cat" -k 12 --distinct --html "$run/cat.html"
