"""Measures of image quality: PSNR and SSIM against a truth, NIQE and sharpness without one."""
