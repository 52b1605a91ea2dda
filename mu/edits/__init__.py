"""Edits: what every method returns. See `mu.edits.edit.Edit` for the laws that every edit keeps."""
