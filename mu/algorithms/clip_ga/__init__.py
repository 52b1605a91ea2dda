"""Gradient ascent on a CLIP: drive the features of the concept's images and captions apart."""
