#!/usr/bin/env bash
# Download the Stable Diffusion checkpoints of the examples to ../models. Run it at the top of the repository.
here=$(dirname "${BASH_SOURCE[0]}")
export PATH=$here/../.venv/bin:$PATH
exec python3 "$here/download.py" models "$@"
