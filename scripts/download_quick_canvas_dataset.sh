#!/usr/bin/env bash
# Download the UnlearnCanvas benchmark images to ./data. Run it at the top of the repository.
here=$(dirname "${BASH_SOURCE[0]}")
export PATH=$here/../.venv/bin:$PATH
exec python3 "$here/download.py" quick_canvas_dataset "$@"
