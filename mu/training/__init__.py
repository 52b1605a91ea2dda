"""Code that methods share while they search for an edit."""
