"""What methods share while they search for an edit."""
