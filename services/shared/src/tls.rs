//! Encrypted connections.

/// Chooses what computes for TLS, once for the process. Libraries bring two ways with them; one that asks for "the" way of the process (the NATS
/// client and the gRPC server do) panics where none has been chosen.
pub fn choose_cryptography() {
    // An error means that it is chosen already.
    let _ = rustls::crypto::ring::default_provider().install_default();
}
