//! Admin HTTP: health, metrics, status.
