//! Configuration: raw file and environment -> validated `Config`, all errors at once.
