#!/usr/bin/env bash
# The I2P (inappropriate image prompts) data; run at the top of the repository it lands in ./data.
here=$(dirname "${BASH_SOURCE[0]}")
export PATH=$here/../.venv/bin:$PATH
exec python3 "$here/download.py" i2p_dataset "$@"
