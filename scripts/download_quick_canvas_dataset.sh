#!/usr/bin/env bash
# The UnlearnCanvas benchmark pictures; run at the top of the repository they land in ./data.
here=$(dirname "${BASH_SOURCE[0]}")
export PATH=$here/../.venv/bin:$PATH
exec python3 "$here/download.py" quick_canvas_dataset "$@"
