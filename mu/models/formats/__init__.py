"""File formats of other projects: their checkpoints, their names of parameters, their architectures as data."""
