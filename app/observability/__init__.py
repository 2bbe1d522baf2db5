"""How the processes tell what they do: logs, traces, metrics."""
