"""What steers a denoiser, as functions from a denoiser to a denoiser."""
