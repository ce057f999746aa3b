"""The bootstrap exchange with a Kuma control plane."""
