"""Other people's code that does what our quantizers do: one file each, see bench/peer.py."""
