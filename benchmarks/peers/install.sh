#!/bin/sh
# The peers of the embed bench, each in an environment of its own below FOLDER: sh benchmarks/peers/install.sh FOLDER
set -eu
folder=$1
python=${PYTHON:-python3}
mkdir -p "$folder"

"$python" -m venv "$folder/clip-retrieval"
"$folder/clip-retrieval/bin/pip" install --quiet 'setuptools<81' wheel torch==2.14.1 torchvision==0.29.1 'transformers<5'
"$folder/clip-retrieval/bin/pip" install --quiet clip-retrieval==2.45.0 torch==2.14.1 torchvision==0.29.1 'setuptools<81'

"$python" -m venv "$folder/daft"
"$folder/daft/bin/pip" install --quiet daft==0.7.26 torch==2.14.1 torchvision==0.29.1 'transformers<6' pillow
