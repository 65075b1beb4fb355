"""Denoising (paper, section 3.3): the loop, guidance, schedule, solver, Latent Space Adjustment."""
