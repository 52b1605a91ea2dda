"""CiE and SepCE: turn predictions for a concept away from its direction; SepCE works in the null space of protected
prompts."""
