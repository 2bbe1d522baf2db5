"""Generated examples: as many as fit a minute on a busy machine, without a limit per example."""

from hypothesis import HealthCheck, settings

settings.register_profile("unit", max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unit")
