"""What hostile peers, files and neighbours try. What takes a second or more is marked `attack`: see `make attack`."""
