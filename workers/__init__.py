"""Background work: thin Celery tasks that decode, call a service and return."""
