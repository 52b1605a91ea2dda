"""SPM: one-dimensional adapters in the UNet's transformer layers that block one concept and let the others pass."""
