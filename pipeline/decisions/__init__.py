"""Choosing among K actions from fused text, image, audio, video and numbers: environments, algorithms, estimates."""
