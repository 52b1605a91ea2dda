"""CiE and SepCE: predictions for a concept turn away from its direction; SepCE inside the null space of what it protects."""
