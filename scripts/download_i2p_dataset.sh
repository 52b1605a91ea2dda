#!/usr/bin/env bash
# Downloads the I2P (inappropriate image prompts) data. Seen from where you are: run it at the top of the repository to
# find it in ./data.

# shellcheck source=scripts/download.sh
source "$(dirname "${BASH_SOURCE[0]}")/download.sh"

HUB=${HF_ENDPOINT:-https://huggingface.co} # a mirror of the hub, as its own tools name it
SAMPLE=${MU_I2P_SAMPLE_REPOSITORY:-dipeshlav/sample_i2p_dataset}
SAMPLE_FILE=${MU_I2P_SAMPLE_FILE:-sample.zip}
FULL=${MU_I2P_FULL_REPOSITORY:-nebulaanish/i2p-dataset}
FULL_FILE=${MU_I2P_FULL_FILE:-full.zip} # where the repository has none, its single files are taken
FOLDER=${MU_I2P_FOLDER:-./data/i2p-dataset}

usage() {
  cat <<EOF
Usage: scripts/download_i2p_dataset.sh {sample|full}

  sample   a few pictures, enough to try the commands   -> $FOLDER/sample
  full     everything                                   -> $FOLDER/full

Needs curl and unzip (and hf, which pip install huggingface_hub brings, where the data is kept as single files).
A broken download goes on where it stopped; what is already there is left alone; the archive is removed once it is
unpacked. Other places: MU_I2P_FOLDER, MU_I2P_{SAMPLE,FULL}_REPOSITORY, MU_I2P_{SAMPLE,FULL}_FILE, HF_ENDPOINT.

Example: scripts/download_i2p_dataset.sh sample && ls -lh ./data/i2p-dataset/sample/
EOF
}

read_choice "sample full" "$@"
case $CHOICE in
  sample) fetch "$HUB/datasets/$SAMPLE/resolve/main/$SAMPLE_FILE" "$FOLDER/sample" ;;
  full) fetch "$HUB/datasets/$FULL/resolve/main/$FULL_FILE" "$FOLDER/full" "$FULL" ;;
esac
