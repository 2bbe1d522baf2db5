"""A year of a real grocer's prices and purchases, played through a running service over HTTP."""
