//! Compiles the two small protocols that are not Envoy's.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = ["proto/ca.proto", "proto/workload.proto"];
    let set = protox::compile(files, ["proto"])?;
    tonic_prost_build::configure().compile_fds(set)?;
    for file in files {
        println!("cargo:rerun-if-changed={file}");
    }
    Ok(())
}
