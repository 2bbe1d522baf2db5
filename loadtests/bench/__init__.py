"""How fast prices are read: `make bench`."""
