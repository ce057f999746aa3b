"""What hostile peers, files and neighbours try; what takes a second or more is marked `attack` and run by `make attack`."""
