"""HTTP in: one module per resource, its schemas, and what errors look like outside."""
