"""SLUG: one gradient, one layer, one step; for CLIP and for models that use its text tower or its vision tower."""
