"""What everything goes through that is not to slow down whoever makes it, and not to be lost on its way.

    buffer (bounded; what happens when it is full is a named policy) → batcher (records, bytes, time) → a stream
    → per sink: consumer group → circuit breaker → retry → write → acknowledge, or dead letter

Every class takes its clock and does no more than it is asked to: whose thread it is, and when it is its turn, is
decided by whoever builds a pipeline. At every stage accepted = delivered + dead + dropped + pending
(`app.domain.account`).
"""
