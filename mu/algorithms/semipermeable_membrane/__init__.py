"""SPM: one-dimensional adapters beside the UNet's transformer layers, that stop one concept and let the others pass."""
