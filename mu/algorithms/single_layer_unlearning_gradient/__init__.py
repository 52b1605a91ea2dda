"""SLUG: one gradient, one layer, one step; for CLIP, for models that use its text tower, and for those that use its vision tower."""
