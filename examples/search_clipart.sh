#!/bin/sh
# Clip arts with titles: fetch, embed, index, search by words, by a row, by SQL.
set -eu
here=$(dirname "$0")
run=${1:-runs/search_clipart}

isthmus corpus openclipart --out "$run/corpus"
isthmus embed "$run/corpus" --table "$run/db/clipart" --config "$here/embed_clipart.yaml"
isthmus index "$run/db/clipart"
isthmus search "$run/db/clipart" "a sleeping cat" -k 12 --distinct --html "$run/cat.html"
isthmus search "$run/db/clipart" "一只狗" -k 12 --where "key LIKE 'animals/%'" --html "$run/dog.html"
isthmus search "$run/db/clipart" --like animals/armadillo_architetto_fra_01 -k 12 --html "$run/armadillo.html"
