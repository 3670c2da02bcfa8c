"""Loading any supported Hugging Face checkpoint, and the forward passes that all roles share."""
