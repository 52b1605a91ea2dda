"""Alternating gradient ascent and fine-tuning of a CLIP: forget, then repair."""
