//! Compiles the contracts without a protoc on the machine.

use std::path::PathBuf;

use prost::Message;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=lake");
    println!("cargo:rerun-if-changed=externalscaler");
    let queue = protox::compile(["lake/queue/v1/queue.proto"], ["."])?;
    prost_build::Config::new().bytes(["."]).compile_fds(queue)?;
    let services = [
        "catalog_service",
        "lake_service",
        "operation_service",
        "quarantine_service",
        "record_service",
        "table_service",
        "trust_service",
    ];
    let admin = protox::compile(services.map(|name| format!("lake/admin/v1/{name}.proto")), ["."])?;
    // For reflection: clients can ask a writer what it understands.
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("lake.admin.v1.bin"), admin.encode_to_vec())?;
    tonic_prost_build::configure().compile_fds(admin)?;
    let scaler = protox::compile(["externalscaler/externalscaler.proto"], ["."])?;
    std::fs::write(out.join("externalscaler.bin"), scaler.encode_to_vec())?;
    tonic_prost_build::configure().compile_fds(scaler)?;
    Ok(())
}
