"""The words of the messages, in one file: ``tests/reference/messages.json``, each with the command that it answers.

A test of bad input says what its message must name, and compares the whole line with the kept one (`as_kept`). After a
change of words, remake the file and read its diff:

    REMAKE_MESSAGES=1 pytest tests/cli

A few lines end in words of click, pydantic or safetensors; they are those of the versions in ``constraints.txt``.
"""

from __future__ import annotations

import os
from collections.abc import Collection

import pytest

from tests.cli import test_bank, test_data, test_errors, test_separable_bank, test_slug_errors
from tests.cli.conftest import keep_messages, messages

TABLES: dict[str, Collection[str]] = {
    "bank": test_bank.BAD_INPUT,
    "data": test_data.BAD_INPUT,
    "errors": test_errors.BAD_INPUT,
    "separable_bank": test_separable_bank.WRONG,
    "slug_errors": test_slug_errors.BAD_INPUT,
}


@pytest.mark.parametrize("table", TABLES)
def test_the_kept_messages_are_those_of_the_table(table: str) -> None:
    kept = messages()
    if os.environ.get("REMAKE_MESSAGES"):
        keep_messages({**kept, table: {row: kept[table][row] for row in TABLES[table] if row in kept.get(table, {})}})
    else:
        assert set(kept[table]) == set(TABLES[table])


def test_a_kept_message_is_one_line_without_a_path_of_this_machine() -> None:
    for table, rows in messages().items():
        for row, (typed, line) in rows.items():
            assert typed.startswith("mu ") and line.startswith("error: ") and len(line.splitlines()) == 1, (table, row)
            assert "pytest-" not in line and "/tmp" not in line, (table, row)
