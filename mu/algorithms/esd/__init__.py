"""ESD: train the UNet so that its prediction for the concept points away from the frozen model's prediction for it."""
