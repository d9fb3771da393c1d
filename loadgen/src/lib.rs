//! Outrigger's load generator and its bundled origin server.
