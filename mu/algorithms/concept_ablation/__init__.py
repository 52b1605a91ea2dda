"""Concept ablation: train the UNet to predict for prompts of the concept what it predicts for prompts of an anchor."""
