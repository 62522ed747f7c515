//! Measures parts of the way of a request alone: `bench-parts` in time; `bench-parts count PART TIMES` only does it, for
//! a tool that counts instructions.

use std::io::Write as _;
use std::process::ExitCode;

use bench::parts::{NAMES, part};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [_, "count", name, times] => match (part(name), times.parse::<u32>()) {
            (Some(mut part), Ok(times)) => {
                for _ in 0..times {
                    part();
                }
                ExitCode::SUCCESS
            }
            _ => {
                let usage =
                    format!("usage: bench-parts count PART TIMES; PART is one of {}\n", NAMES.join(", "));
                std::io::stderr().write_all(usage.as_bytes()).unwrap_or_default();
                ExitCode::FAILURE
            }
        },
        _ => {
            divan::main();
            ExitCode::SUCCESS
        }
    }
}

#[divan::bench(args = NAMES)]
fn parts(bencher: divan::Bencher<'_, '_>, name: &str) {
    if let Some(part) = part(name) {
        bencher.bench_local(part);
    }
}
