"""File formats of other projects: checkpoints, parameter names, and architectures as data."""
