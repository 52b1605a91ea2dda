"""Sampling from a `mu.models.diffusion.DiffusionModel`: latents, guidance, full or partial denoising, images."""
