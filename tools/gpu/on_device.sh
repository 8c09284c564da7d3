#!/bin/bash
# `make gpu` on a machine that has a GPU, a Python with jax's CUDA plugin, and this tree with build/gpu; nothing is installed.
# usage: bash tools/gpu/on_device.sh [--out FOLDER] [--only step] ...      PYTHON=python3.12 names the interpreter.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${PYTHON:-python3}
"$python" -P tools/dev_links.py # .dev/fxhlo: the folders of this tree under the names that they are imported by
export PYTHONPATH="$PWD/.dev${PYTHONPATH:+:$PYTHONPATH}" PYTHONSAFEPATH=1
exec "$python" -P -m fxhlo.tools.gpu "$@"
