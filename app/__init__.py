"""The pricing engine: everything the processes share, and the HTTP API."""
