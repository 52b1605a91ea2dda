"""Download and unpack, for download_*.sh: python3 scripts/download.py {models|i2p_dataset|quick_canvas_dataset} CHOICE

An archive grows as FOLDER.zip.part, so a broken download continues where it stopped, in this run or a later one. When
complete it is FOLDER.zip. It is unpacked next to FOLDER and moved in one step, so FOLDER is never half full.

Exit codes: 0 done, or already there; 1 the host sent something other than the archive; 2 could not start or continue
(wrong argument, missing package, no network, no disk space); 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import os
import shutil
import signal
import stat
import sys
import zlib
from pathlib import Path, PureWindowsPath
from urllib.parse import urlsplit
from zipfile import BadZipFile, ZipFile, ZipInfo

try:
    import huggingface_hub as hub
    from huggingface_hub.errors import HfHubHTTPError, HTTPError, LocalEntryNotFoundError
    from huggingface_hub.file_download import http_get  # `hf_hub_download` discards an earlier run's part
    from huggingface_hub.utils import build_hf_headers, disable_progress_bars, logging
except ImportError:
    hub = None

MODELS = "nebulaanish/unlearn_models"
FEW, ALL = "a few images, enough to try the commands", "everything"
ARCHIVES = {  # script, choice -> repository, its file, description
    "models": {
        "compvis": (MODELS, "compvis.zip", "Stable Diffusion as one CompVis checkpoint (archive of 3.84 GB)"),
        "diffuser": (MODELS, "diffuser.zip", "Stable Diffusion as diffusers folders (archive of 24.1 GB)"),
    },
    "i2p_dataset": {
        "sample": ("dipeshlav/sample_i2p_dataset", "sample.zip", FEW),
        "full": ("nebulaanish/i2p-dataset", "full.zip", ALL),
    },
    "quick_canvas_dataset": {
        "sample": ("dipeshlav/sample-quick-unlearn-canvas", "sample-quick-unlearn-canvas.zip", FEW),
        "full": ("nebulaanish/quick-canvas-benchmark", "full.zip", ALL),
    },
}
USAGE = """Usage: scripts/{script} {{{choices}}}

{rows}

Needs python3 with huggingface_hub, which mu installs. A broken download continues where it stopped. An existing folder
is left alone. The archive is removed after unpacking. If a data set has no archive of everything, its single files are
downloaded.
Other places: {prefix}_FOLDER, {prefix}_REPOSITORY or {prefix}_{{{upper}}}_{{REPOSITORY,FILE}}, HF_ENDPOINT.

Example: scripts/{script} {first} && ls -lh {folder}/{first}/"""


class Failed(Exception):
    """(exit code, message)"""


def usage(script: str, prefix: str, folder: str, archives: dict[str, tuple[str, str, str]]) -> str:
    wide = max(len(meaning) for *_, meaning in archives.values())
    rows = [f"  {name:8}   {meaning:{wide}}   -> {folder}/{name}" for name, (*_, meaning) in archives.items()]
    return USAGE.format(
        script=script,
        prefix=prefix,
        folder=folder,
        choices="|".join(archives),
        rows="\n".join(rows),
        upper=",".join(archives).upper(),
        first=next(iter(archives)),
    )


def fetch(repository: str, name: str, kind: str, folder: str, single_files: bool) -> None:
    """Download and unpack an archive. ``single_files``: if ``name`` does not exist, download the single files."""
    if os.path.isdir(folder) and os.listdir(folder):
        print(f"{folder} is already there (remove it to download it again)")
        return
    if os.path.lexists(folder) and not os.path.isdir(folder):
        raise Failed(2, f"{folder} is in the way, it is not a folder: move it")
    file, url = Path(f"{folder}.zip"), hub.hf_hub_url(repository, name, repo_type=kind)
    if file.exists() or download(url, file):
        print(f"unpacking in {folder}", flush=True)
        unpack(file, folder, url)
    elif single_files:
        print(f"no archive: getting the files of the dataset {repository}", flush=True)
        fetch_files(repository, folder)
    else:
        raise Failed(1, f"{url} does not exist (HTTP 404): name another place, see --help")
    print(f"done: {folder}")


def download(url: str, file: Path) -> bool:
    """Return False if the file does not exist. Retry as long as each attempt adds bytes."""
    part, have, size = Path(f"{file}.part"), -1, None
    try:
        size = hub.get_hf_file_metadata(url).size
    except HfHubHTTPError as error:
        if error.response.status_code == 404:
            return False
        if error.response.status_code not in (405, 501):  # the host does not support HEAD
            raise
    part.parent.mkdir(parents=True, exist_ok=True)
    with part.open("ab") as out:
        if size is None or out.tell() > size:  # it may be part of another archive
            out.truncate(0)
    need_room(part, size or 0)
    print(f"downloading {url}" + (f" ({human(size)})" if size else ""), flush=True)
    while have < (have := part.stat().st_size):
        try:
            with part.open("ab") as out:
                http_get(url, out, resume_size=have, headers=build_hf_headers(), expected_size=size)
            part.rename(file)
            return True
        except HTTPError as error:  # a broken connection, or an error status
            if isinstance(error, HfHubHTTPError):
                raise
    broke = f"the connection to {urlsplit(url).netloc} broke after {have} of {size or 'unknown'} bytes"
    raise Failed(2, f"{broke}: the part is kept, run this again to continue")


def need_room(part: Path, size: int) -> None:
    need, free = 2 * size - part.stat().st_size, shutil.disk_usage(part.parent).free
    if need > free:
        raise Failed(
            2,
            f"needs {human(need)} in {part.parent} (the archive and its content), {human(free)} is free: free the rest",
        )


def human(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.1f} kB"


def unpack(file: Path, folder: str, url: str) -> None:
    """Unpack ``file`` to ``folder``. If its only entry is a folder of that name, unpack the entry as that folder."""
    staging = Path(f"{folder}.unpacking")
    shutil.rmtree(staging, ignore_errors=True)
    try:
        with ZipFile(file) as content:
            for entry in filter(leads_outside, content.infolist()):
                raise BadZipFile(f"an entry leads outside its folder: {entry.filename}")
            content.extractall(staging)
        shutil.rmtree(staging / "__MACOSX", ignore_errors=True)
        inner = staging / Path(folder).name
        os.replace(inner if os.listdir(staging) == [inner.name] and inner.is_dir() else staging, folder)
    except (BadZipFile, zlib.error, EOFError, RuntimeError) as error:
        file.unlink()
        raise Failed(1, f"{url} is not a whole, safe zip archive ({error}): it was removed, run this again") from None
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    file.unlink()


def leads_outside(entry: ZipInfo) -> bool:
    path = PureWindowsPath(entry.filename)  # parses both slashes, and drives
    return bool(path.anchor) or ".." in path.parts or stat.S_ISLNK(entry.external_attr >> 16)


def fetch_files(repository: str, folder: str) -> None:
    part, wanted = Path(f"{folder}.part"), hub.HfApi().list_repo_files(repository, repo_type="dataset")
    hub.snapshot_download(repository, repo_type="dataset", local_dir=part)
    if not all(
        (part / name).exists() for name in wanted
    ):  # it returns early without an error if the hub stops answering
        raise ConnectionError("some files are missing")
    shutil.rmtree(part / ".cache")
    os.replace(part, folder)


def explain(error: Exception, folder: str) -> tuple[int, str]:
    """Exit code and message."""
    host, reason = urlsplit(hub.constants.ENDPOINT).netloc, str(error).strip().split("\n")[0]
    if isinstance(error, HfHubHTTPError):
        code, url = error.response.status_code, str(error.response.url).partition("?")[0]
        if code in (401, 403):
            return 1, f"{host} refuses {url} (HTTP {code}): private, gated or moved"
        return 1, f"{host} answers HTTP {code} for {url}: run this again later"
    if isinstance(error, OSError) and error.errno:
        return 2, f"cannot write {error.filename or folder}: {error.strerror}; the part is kept, run this again"
    if isinstance(error, (HTTPError, ConnectionError, LocalEntryNotFoundError)):
        return 2, f"no network: {host} cannot be reached ({reason}); connect and run this again"
    return 2, reason


def main(name: str, *arguments: str) -> int:
    script, prefix, archives = f"download_{name}.sh", f"MU_{name.replace('_dataset', '').upper()}", ARCHIVES[name]

    def setting(default: str, *names: str) -> str:
        return next(filter(None, (os.environ.get(f"{prefix}_{name}") for name in names)), default)

    folder = setting("../models" if name == "models" else f"./data/{name.replace('_', '-')}", "FOLDER")
    if arguments[:1] in (("-h",), ("--help",)):
        print(usage(script, prefix, folder, archives))
        return 0
    choice = " ".join(arguments)
    try:
        if choice not in archives:
            wrong = f"unknown argument '{choice}': " if len(arguments) == 1 else ""
            raise Failed(2, f"{wrong}give one of: {' '.join(archives)} (see --help)")
        if hub is None:
            install = f"{sys.executable} -m pip install -U huggingface_hub"
            raise Failed(2, f"needs huggingface_hub, not installed here: {install}, then run this again")
        logging.set_verbosity_error()
        if not sys.stderr.isatty():
            disable_progress_bars()
        repository = setting(archives[choice][0], f"{choice.upper()}_REPOSITORY", "REPOSITORY")
        file = setting(archives[choice][1], f"{choice.upper()}_FILE")
        fetch(repository, file, "model" if name == "models" else "dataset", f"{folder}/{choice}", choice == "full")
        return 0
    except KeyboardInterrupt:
        return 130
    except Failed as error:
        code, message = error.args
    except (HTTPError, OSError, ValueError) as error:
        code, message = explain(error, folder)
    print(f"{script}: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sys.exit(main(*sys.argv[1:]))
