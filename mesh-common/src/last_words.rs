//! What a program says to the person who started it, when it cannot go on: one sentence on standard error.

use std::process::ExitCode;

use crate::options::sentence;

/// Help and version are answers, not errors; anything else is one sentence. `help` is the command that lists all flags.
pub fn usage(program: &str, help: &str, error: &clap::Error) -> ExitCode {
    if error.use_stderr() {
        return fail(program, &sentence(error, help));
    }
    error.print().map_or(ExitCode::FAILURE, |()| ExitCode::SUCCESS)
}

/// The last word of a process.
#[allow(clippy::print_stderr)] // logging may not be set up
pub fn fail(program: &str, sentence: &str) -> ExitCode {
    eprintln!("{program}: {sentence}");
    ExitCode::FAILURE
}
