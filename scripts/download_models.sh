#!/usr/bin/env bash
# The Stable Diffusion checkpoints that the examples name; run at the top of the repository they land in ../models.
here=$(dirname "${BASH_SOURCE[0]}")
export PATH=$here/../.venv/bin:$PATH
exec python3 "$here/download.py" models "$@"
