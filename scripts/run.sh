#!/usr/bin/env bash
# SLUG for a list of names: step 3 of 3 (docs/slug.md). The defaults use the embedded model; for a published CLIP:
#
#   NAMES="Elon_Musk Jeff_Bezos" MODEL=open_clip:ViT-B-32/laion400m_e32 bash scripts/run.sh
#
# It reads the gradients of scripts/run_clip_name.sh, and computes missing ones (with the same FORGET and RETAIN).
# Preconditioning needs retain images, so it is off here.
# Arguments are passed to `mu erase slug`, like --set layers.tower=vision. A finished name is skipped.

set -euo pipefail

NAMES=${NAMES:-"Ada_Stone Boris_Vale"} # space-separated, with underscores within a name
export MODEL=${MODEL:-canvas-clip}
export GRADIENTS=${GRADIENTS:-outputs/gradients}
OUT=${OUT:-outputs/slug} # one folder per name: the edit, report.html, the Pareto figures

HERE=$(dirname "${BASH_SOURCE[0]}")
MU=${MU:-$(command -v mu || echo "$HERE/../.venv/bin/mu")}
folder=$GRADIENTS/${MODEL//[:\/]/_}

for name in $NAMES; do
  if [[ ! -e $folder/$name.safetensors || ! -e $folder/retain.safetensors ]]; then
    NAME=$name FORGET=${FORGET:-canvas} bash "$HERE/run_clip_name.sh"
  fi
  "$MU" erase slug --model "$MODEL" --concept "${name//_/ }" --out "$OUT/${MODEL//[:\/]/_}/$name" --resume \
    --set data.forget="$folder/$name.safetensors" --set data.retain="$folder/retain.safetensors" \
    --set gradients.precondition=null "$@"
done
