"""The way out: PostgreSQL, Redis and Celery. Client errors leave here as the errors of `app.errors`."""
