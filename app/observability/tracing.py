"""Traces: one id from the HTTP request through stream, task, SQL and cache. W3C trace context everywhere."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from opentelemetry import propagate, trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.propagators.textmap import CarrierT
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from app.settings import Settings

_tracer = trace.get_tracer("pricing")


def configure_tracing(settings: Settings, service: str) -> TracerProvider:
    """Install the provider of this process; call it after every fork. `shutdown()` it to flush.

    Without an endpoint there are ids but no spans go anywhere. Batches are small, so that encoding one does
    not hold up the requests beside it.
    """
    provider = TracerProvider(
        sampler=ParentBasedTraceIdRatio(settings.trace_sample_ratio),
        resource=Resource.create({"service.name": service}),
        shutdown_on_exit=False,
    )
    if settings.otlp_endpoint is not None:
        exporter = OTLPSpanExporter(endpoint=f"{str(settings.otlp_endpoint).rstrip('/')}/v1/traces", timeout=5)
        provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=1000, max_export_batch_size=128))
    trace.set_tracer_provider(provider)
    propagate.set_global_textmap(TraceContextTextMapPropagator())
    return provider


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


def context_from(headers: CarrierT) -> Context:
    return propagate.extract(headers)


@contextmanager
def step(name: str, kind: trace.SpanKind, attributes: dict[str, str | int]) -> Iterator[None]:
    """A step of the current trace. Where none is being recorded it costs nothing and begins none."""
    if not trace.get_current_span().is_recording():
        yield
        return
    with _tracer.start_as_current_span(name, kind=kind, attributes=attributes):
        yield


@contextmanager
def consumer_span(name: str, traceparents: Sequence[str | None], attributes: dict[str, str | int]) -> Iterator[None]:
    """The processing of messages: a child of the one message's span; of several, a span of the first one's
    trace that links to the others."""
    contexts = [context_of(traceparent) for traceparent in traceparents if traceparent]
    links = [trace.Link(trace.get_current_span(context).get_span_context()) for context in contexts[1:]]
    with _tracer.start_as_current_span(
        name,
        context=contexts[0] if contexts else None,
        kind=trace.SpanKind.CONSUMER,
        attributes=attributes,
        links=links,
    ):
        yield
