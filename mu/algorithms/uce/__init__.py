"""UCE: replace a concept's keys and values by those of another text, by linear least squares in closed form."""
