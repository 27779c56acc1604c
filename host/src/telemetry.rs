//! Telemetry: tracing and the metrics registry.
