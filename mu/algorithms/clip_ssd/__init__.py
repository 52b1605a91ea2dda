"""SSD on a CLIP: shrink weights that are much more important to the concept than to the retain pairs. No training."""
