"""Published checkpoint formats, one file each: whose state dict becomes which of our tokenizers."""
