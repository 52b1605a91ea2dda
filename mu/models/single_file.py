"""The place of `mu.models.formats.single_file` before 0.1.0."""

from mu.models.formats.single_file import load_single_file, to_compvis

__all__ = ["load_single_file", "to_compvis"]
