"""Use cases: functions that take ports. They know no client library."""
