"""Load on a running system, and whether it keeps its promises under it. README.md says how to use it."""
