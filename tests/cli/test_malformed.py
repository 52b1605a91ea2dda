"""Text that mu reads and that nobody meant: code 2, one short line on standard error, and nothing left behind.

Each row stands for a kind: what is typed (`{tmp}` holds the files of `FILES`), and what the line must say.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

DIGITS = "7" * 5000
BOMB = "a: &a [1]\n" + "\n".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 12)}]" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
FILES: dict[str, str | bytes] = {
    "bomb.yaml": BOMB,
    "deep.yaml": "a: " + "[" * 20_000,
    "twice.yaml": "train: {iterations: 1}\ntrain: {iterations: 2}\n",
    "digits.yaml": f"seed: {DIGITS}\n",
    "date.yaml": "seed: 2001-02-31\n",
    "list.yaml": "- 1\n",
    "nul.yaml": "model: canvas\x00\n",
    "escape.yaml": 'output_dir: "a\\e[31m"\n',
    "surrogate.yaml": 'model: "\\ud800"\n',
    "long.yaml": f"{'k' * 1000}: 1\n",
    "large.yaml": "# " + "x" * 2**20,
    "latin.csv": b"prompt\ncaf\xe9\n",
    "open.csv": 'prompt,seed\n"a star,1\n',
    "digits.csv": f"prompt,seed\na star,{DIGITS}\n",
    "size.csv": "prompt,width,height\na star,64,64\nb,6400000,64\n",
    "wide.csv": "prompt,width,height\na star,64,64\nb,6400,64\n",
    "deep.json": "[" * 20_000,
    "surrogate.json": r'["a \udc00"]',
    "nul.txt": "a\x00star\n",
}
ERASE = "erase esd --model {tiny} --out {tmp}/out --no-images --concept"
GENERATE = "generate --model {tiny} --out {tmp}/out --steps 1"
TYPED = {
    "alias bomb": ("erase esd --config {tmp}/bomb.yaml", "aliases"),
    "nested too deep": ("erase esd --config {tmp}/deep.yaml", "nested too deep"),
    "a key twice": ("erase esd --config {tmp}/twice.yaml", "'train' twice"),
    "5,000 digits": ("erase esd --config {tmp}/digits.yaml", "5000 digits"),
    "a date that is none": ("erase esd --config {tmp}/date.yaml", "quotes"),
    "a list of settings": ("erase esd --config {tmp}/list.yaml", "keys and values"),
    "NUL": ("erase esd --config {tmp}/nul.yaml", "line 1 has a NUL"),
    "control character": ("erase esd --config {tmp}/escape.yaml", "output_dir"),
    "half a surrogate pair": ("erase esd --config {tmp}/surrogate.yaml", "surrogate"),
    "a key of 1,000 letters": ("erase esd --config {tmp}/long.yaml", "unknown setting"),
    "settings of a megabyte": ("erase esd --config {tmp}/large.yaml", "bytes"),
    "a pipe of settings": ("erase esd --config {tmp}/fifo.yaml", "pipe"),
    "a device of settings": ("erase esd --config /dev/zero", "device"),
    "digits in an option": (f"{ERASE} x --set seed={DIGITS}", "5000 digits"),
    "hexadecimal digits in an option": (f"{ERASE} x --set seed=0x{DIGITS[:99]}", "64 bits"),
    "an option nested too deep": (f"{ERASE} x --set templates={'[' * 5000}", "nested too deep"),
    "an option of many parts": (f"{ERASE} x --set {'train.' * 3000}lr=1", "unknown setting"),
    "an option that is not finite": (f"{ERASE} x --set train.lr=.inf", "finite"),
    "a template with attribute access": (f"{ERASE} x --set templates=['{{{{}}}}{{{{0.__class__}}}}']", "braces"),
    "a template with a stray brace": (f"{ERASE} x --set templates=['{{{{}}}}}}}}']", "braces"),
    "one setting by two names": ("erase ca --concept x --set pictures.count=4 --set images.count=5", "'pictures'"),
    "a billion images": ("erase ca --concept x --set images.count=1000000000", "images.count"),
    "a concept with an escape": (f"{ERASE} a\x1b[31mb", "control character"),
    "a concept of bytes": (f"{ERASE} a\udcffb", "Unicode"),
    "a concept of 100,000 letters": (f"{ERASE} {'x' * 100_000}", "100000 letters"),
    "a concept beyond the tokenizer": (f"{ERASE} {'xq' * 100}", "tokens"),
    "not UTF-8": (f"{GENERATE} --prompts {{tmp}}/latin.csv", "UTF-8"),
    "a quote not closed": (f"{GENERATE} --prompts {{tmp}}/open.csv", "quote"),
    "a seed of 5,000 digits": (f"{GENERATE} --prompts {{tmp}}/digits.csv", "line 2: seed"),
    "a size beyond memory": (f"{GENERATE} --prompts {{tmp}}/size.csv", "line 3: width"),
    "a size beyond the model": (f"{GENERATE} --prompts {{tmp}}/wide.csv", "1_0.png"),
    "prompts nested too deep": (f"{GENERATE} --prompts {{tmp}}/deep.json", "nested too deep"),
    "half a surrogate pair in a prompt": (f"{GENERATE} --prompts {{tmp}}/surrogate.json", "surrogate"),
    "NUL in a prompt": (f"{GENERATE} --prompts {{tmp}}/nul.txt", "line 1 has a NUL"),
    "a pipe of prompts": (f"{GENERATE} --prompts {{tmp}}/fifo.csv", "pipe"),
    "a folder of prompts": (f"{GENERATE} --prompts {{tmp}}/folder.csv", "folder"),
    "a column that is not there": (f"{GENERATE} --prompts {{tmp}}/wide.csv --column Sentence", "no column 'Sentence'"),
    "a column without a file": (f"{GENERATE} --prompt x --column y", "--prompts"),
    "a billion images of a prompt": (f"{GENERATE} --prompt x --n 1000000000", "--n"),
    "a billion steps": ("generate --prompt x --model {tiny} --out {tmp}/out --steps 1000000000", "steps"),
    "a size of 5,000 digits": (f"{GENERATE} --prompt x --size {DIGITS}x64", "--size"),
    "a size of a million": (f"{GENERATE} --prompt x --size 1000000x1000000", "at most 512"),
    "a billion images of a set": (
        "data forget-set --name x --model {tiny} --n-imgs 1000000000 --out {tmp}/out", "--n-imgs"
    ),
    "a pipe of shards": ("data forget-set --name x --shards {tmp}/fifo.tar --out {tmp}/out", "pipe"),
    "a name of bytes": ("data forget-set --name a\udcff --shards {tmp}/fifo.tar --out {tmp}/out", "Unicode"),
    "a prompt of bytes": (f"{GENERATE} --prompt a\udcffb", "surrogate"),
    "a negative prompt of bytes": (f"{GENERATE} --prompt x --negative \udcff", "surrogate"),
    "a seed beyond 64 bits of a set": (
        f"data forget-set --name x --model {{tiny}} --seed {2**64} --n-imgs 2 --steps 1 --out {{tmp}}/out", "seed"
    ),
    "a last seed beyond 64 bits": (f"{GENERATE} --prompt x --seed {2**64 - 1} --n 2", "seed"),
    "steps without end of a set": (
        "data forget-set --name x --model {tiny} --steps 1000000000 --out {tmp}/out", "denoising steps"
    ),
    "a training's seed below zero": ("canvas train --seed -1 --out {tmp}/out", "--seed"),
    "a world beyond all worlds": (f"canvas train --world {10**30} --out {{tmp}}/out", "--world"),
    "a rendering's seed beyond 64 bits": (f"canvas render shards {{tmp}}/out --n 1 --seed {2**80}", "--seed"),
    "a GPU beyond all machines": (f"{GENERATE} --prompt x --device {10**30}", "device"),
    "a billion renderings": ("canvas render celeba {tmp}/out --n 1000000000", "--n"),
}  # fmt: skip


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if not path.is_dir())


@pytest.mark.parametrize(("typed", "told"), TYPED.values(), ids=TYPED)
def test_malformed_text_is_one_short_line(typed: str, told: str, tmp_path: Path, tiny_folder: Path, cli: Any) -> None:
    for name, content in FILES.items():
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    for name in ("fifo.yaml", "fifo.csv", "fifo.tar"):
        os.mkfifo(tmp_path / name)
    (tmp_path / "folder.csv").mkdir()
    before = files(tmp_path)
    ended = cli(*(word.format(tmp=tmp_path, tiny=tiny_folder) for word in typed.split(" ")))
    errors = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    assert ended.exit_code == 2, (ended.output, ended.exception)
    assert len(errors) == 1 and told in errors[0], ended.stderr
    assert ended.stderr.endswith(errors[0] + "\n") and "Traceback" not in ended.output
    assert len(errors[0].replace(str(tmp_path), "")) < 400 and errors[0].isprintable()
    assert files(tmp_path) == before


def test_control_a_list_with_odd_names_is_drawn(tmp_path: Path, tiny_folder: Path, cli: Any) -> None:
    (tmp_path / "good.csv").write_text("Sentence,sd_seed,width,height\na star,7,32,64\n")
    done = cli(
        "generate", "--model", tiny_folder, "--prompts", tmp_path / "good.csv", "--column", "Sentence", "--steps", 1,
        "--out", tmp_path / "out",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert '"seed": 7' in (tmp_path / "out" / "prompts.json").read_text()
