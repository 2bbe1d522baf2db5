"""From the stream to Celery: reclaim, read, group, dispatch; and the doorbell that says when."""
