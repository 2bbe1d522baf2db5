"""Traces: one id from the HTTP request through stream, task, SQL and cache. W3C trace context everywhere."""

import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from random import getrandbits, random
from typing import Literal

import msgspec
from opentelemetry import propagate, trace
from opentelemetry.context import Context, attach, detach
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, ParentBased, TraceIdRatioBased
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from app.settings import Settings

Attributes = dict[str, str | int]

_tracer = trace.get_tracer("pricing")

FLUSH_S = 2.0


def configure_tracing(settings: Settings, service: str, *, sampled_by_caller: bool = False) -> TracerProvider:
    """Install the provider of this process; call it after every fork, and `stop_tracing` in the end.

    Without an endpoint there are ids but no spans go anywhere. Batches are small, so that encoding one does
    not hold up the requests beside it. `sampled_by_caller`: whoever begins a trace has drawn already.
    """
    root = ALWAYS_ON if sampled_by_caller else TraceIdRatioBased(settings.trace_sample_ratio)
    provider = TracerProvider(
        sampler=ParentBased(root),
        resource=Resource.create({"service.name": service}),
        shutdown_on_exit=False,
    )
    if settings.otlp_endpoint is not None:
        # Here, because it brings in more than a megabyte, and most who try things out have nowhere to send spans.
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        exporter = OTLPSpanExporter(endpoint=f"{str(settings.otlp_endpoint).rstrip('/')}/v1/traces", timeout=5)
        provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=1000, max_export_batch_size=128))
    trace.set_tracer_provider(provider)
    propagate.set_global_textmap(TraceContextTextMapPropagator())
    return provider


def stop_tracing(provider: TracerProvider) -> None:
    """Send the spans that are left. Where nobody takes them that would go on for half a minute; no process waits
    longer for it than `FLUSH_S`."""
    flushing = threading.Thread(target=provider.shutdown, name="flush spans", daemon=True)
    flushing.start()
    flushing.join(FLUSH_S)


def current_trace_id() -> str | None:
    """The current trace's id in hex, or None outside any trace."""
    context = trace.get_current_span().get_span_context()
    return trace.format_trace_id(context.trace_id) if context.is_valid else None


def current_traceparent() -> str | None:
    """The current span as a W3C traceparent, or None outside any trace."""
    carrier: dict[str, str] = {}
    propagate.inject(carrier)
    return carrier.get("traceparent")


def context_of(traceparent: str | None) -> Context:
    """What to continue: the context of a traceparent, or an empty one."""
    return propagate.extract({"traceparent": traceparent} if traceparent else {})


class RequestTrace(msgspec.Struct, frozen=True, gc=False):
    """The trace of one HTTP request, and the span that stands for it here. Ids are lower-case hex."""

    trace_id: str
    span_id: str
    parent_id: str | None
    sampled: bool

    @property
    def traceparent(self) -> bytes:
        return f"00-{self.trace_id}-{self.span_id}-{'01' if self.sampled else '00'}".encode()

    def parent_context(self) -> Context | None:
        """What the request's own span continues."""
        if self.parent_id is None:
            return Context()
        return msgspec.structs.replace(self, span_id=self.parent_id).context()

    def context(self) -> Context:
        """The request as the current span, for what has no span of its own."""
        return trace.set_span_in_context(trace.NonRecordingSpan(self.span_context()), Context())

    def span_context(self) -> trace.SpanContext:
        """What others link to."""
        flags = trace.TraceFlags(trace.TraceFlags.SAMPLED if self.sampled else trace.TraceFlags.DEFAULT)
        return trace.SpanContext(int(self.trace_id, 16), int(self.span_id, 16), is_remote=True, trace_flags=flags)

    def of_span(self, span: trace.Span) -> "RequestTrace":
        own = span.get_span_context()
        ids = trace.format_trace_id(own.trace_id), trace.format_span_id(own.span_id)
        return RequestTrace(*ids, self.parent_id, own.trace_flags.sampled)


def traceparent_of(span: trace.Span) -> bytes:
    """What continues this span elsewhere."""
    own = span.get_span_context()
    return f"00-{own.trace_id:032x}-{own.span_id:016x}-{own.trace_flags:02x}".encode()


_TRACEPARENT = re.compile(rb"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")
_NEVER_ZERO = 1 << 64 | 1  # no id of zeros is valid
_NO_TRACE, _NO_SPAN = b"0" * 32, b"0" * 16


def begin_request_trace(traceparent: bytes | None, sample_ratio: float) -> RequestTrace:
    """Continue the trace of a valid `traceparent` header (W3C Trace Context, level 1), as sampled as it is, or
    begin one that is sampled with this probability."""
    ids = f"{getrandbits(192) | _NEVER_ZERO:048x}"
    span_id = ids[32:]
    if traceparent is not None:
        match = _TRACEPARENT.fullmatch(traceparent)
        if match is not None and match[1] != _NO_TRACE and match[2] != _NO_SPAN:
            return RequestTrace(match[1].decode(), span_id, match[2].decode(), int(match[3], 16) & 1 == 1)
    return RequestTrace(ids[:32], span_id, None, random() < sample_ratio)  # noqa: S311 - sampling


def messaging(system: str, operation: str, kind: Literal["send", "receive", "process"], destination: str) -> Attributes:
    """What spans of messages say, by the names of OpenTelemetry's semantic conventions; `operation` is our own word."""
    return {
        "messaging.system": system,
        "messaging.operation.name": operation,
        "messaging.operation.type": kind,
        "messaging.destination.name": destination,
    }


def describe(**attributes: int | bool) -> None:
    """Facts of our own about the current span, as `pricing.…`."""
    trace.get_current_span().set_attributes({f"pricing.{name}": value for name, value in attributes.items()})


@contextmanager
def step(name: str, kind: trace.SpanKind, attributes: Attributes) -> Iterator[None]:
    """A step of the current trace. Where none is being recorded it costs nothing and begins none."""
    if not trace.get_current_span().is_recording():
        yield
        return
    with _tracer.start_as_current_span(name, kind=kind, attributes=attributes):
        yield


@contextmanager
def span(
    name: str,
    kind: trace.SpanKind,
    attributes: Attributes,
    parent: Context | None = None,
    links: Sequence[trace.Link] = (),
) -> Iterator[None]:
    """A part of the trace of `parent`, or of the current one; without either, of a new one. Of a trace that is not
    sampled only the context goes on: its ids are all that anybody could use, and a span would take three times as
    long."""
    context = trace.get_current_span(parent).get_span_context()
    if not context.is_valid or context.trace_flags.sampled:
        with _tracer.start_as_current_span(name, context=parent, kind=kind, attributes=attributes, links=links):
            yield
    elif parent is None:
        yield
    else:
        token = attach(parent)
        try:
            yield
        finally:
            detach(token)


def consumer_span(
    name: str, traceparents: Sequence[str | None], attributes: Attributes
) -> AbstractContextManager[None]:
    """The processing of messages: a child of the one message's span; of several, a span of the first one's
    trace that links to the others."""
    contexts = [context_of(traceparent) for traceparent in traceparents if traceparent]
    links = [trace.Link(trace.get_current_span(context).get_span_context()) for context in contexts[1:]]
    return span(name, trace.SpanKind.CONSUMER, attributes, contexts[0] if contexts else None, links)


def batch_span(name: str, traceparents: Sequence[str | None], attributes: Attributes) -> AbstractContextManager[None]:
    """The processing of a batch: part of the current trace where one of the messages is, else of that of the first
    message that is being recorded, with links to the others."""
    contexts = [context_of(traceparent) for traceparent in traceparents if traceparent]
    spans = [(context, trace.get_current_span(context).get_span_context()) for context in contexts]
    current = trace.get_current_span().get_span_context()
    own = any(said.trace_id == current.trace_id for _, said in spans)
    recorded = [(context, said) for context, said in spans if said.trace_flags.sampled]
    parent = None if own or not recorded else recorded[0][0]
    trace_id = current.trace_id if parent is None else recorded[0][1].trace_id
    links = [trace.Link(said) for _, said in recorded if said.trace_id != trace_id]
    return span(name, trace.SpanKind.CONSUMER, attributes, parent, links)
