#!/usr/bin/env bash
# The two gradients that SLUG needs to erase one name: step 2 of 3 (docs/slug.md). The defaults use the embedded model;
# for a published CLIP:
#
#   NAME=Elon_Musk MODEL=open_clip:ViT-B-32/laion400m_e32 FORGET=data/tar_files/Elon_Musk.tar \
#     RETAIN=data/laion/laion400m/00000.tar bash scripts/run_clip_name.sh
#
# Arguments are passed to both `mu gradients` commands, like --set gradients.batch_size=32 or --device cpu.

set -euo pipefail

NAME=${NAME:-Ada_Stone}               # the concept, with underscores for spaces
MODEL=${MODEL:-canvas-clip}           # a CLIP
FORGET=${FORGET:-canvas}              # pairs that show it: a tar of src/clip/a0_create_tar.py, a folder, or canvas
RETAIN=${RETAIN:-canvas}              # pairs of everything else: a shard of LAION-400M, a folder, or canvas
GRADIENTS=${GRADIENTS:-outputs/gradients}

MU=${MU:-$(command -v mu || echo "$(dirname "${BASH_SOURCE[0]}")/../.venv/bin/mu")}
folder=$GRADIENTS/${MODEL//[:\/]/_}

if [[ ! -e $folder/retain.safetensors ]]; then # once for all names
  "$MU" gradients --model "$MODEL" --retain "$RETAIN" --out "$folder/retain.safetensors" "$@"
fi
"$MU" gradients --model "$MODEL" --forget "$FORGET" --concept "${NAME//_/ }" --out "$folder/$NAME.safetensors" --overwrite "$@"
