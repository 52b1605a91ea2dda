#!/usr/bin/env bash
# Downloads the Stable Diffusion checkpoints that the examples name. Seen from where you are: run it at the top of the
# repository to find them in ../models.

# shellcheck source=scripts/download.sh
source "$(dirname "${BASH_SOURCE[0]}")/download.sh"

HUB=${HF_ENDPOINT:-https://huggingface.co} # a mirror of the hub, as its own tools name it
REPOSITORY=${MU_MODELS_REPOSITORY:-nebulaanish/unlearn_models}
FOLDER=${MU_MODELS_FOLDER:-../models}

usage() {
  cat <<EOF
Usage: scripts/download_models.sh {compvis|diffuser}

  compvis    Stable Diffusion as one CompVis checkpoint (archive of 3.84 GB)   -> $FOLDER/compvis
  diffuser   Stable Diffusion as diffusers folders (archive of 24.1 GB)        -> $FOLDER/diffuser

Needs curl and unzip. A broken download goes on where it stopped; what is already there is left alone; the archive is
removed once it is unpacked. Other places: MU_MODELS_FOLDER, MU_MODELS_REPOSITORY, HF_ENDPOINT.

Example: scripts/download_models.sh compvis && ls -lh ../models/compvis/
EOF
}

read_choice "compvis diffuser" "$@"
fetch "$HUB/$REPOSITORY/resolve/main/$CHOICE.zip" "$FOLDER/$CHOICE"
