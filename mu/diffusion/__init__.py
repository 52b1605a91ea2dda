"""Mathematics on a `mu.models.diffusion.DiffusionModel`: latents, guidance, partial denoising, sampling."""
