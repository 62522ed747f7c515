//! The command line, without root.

use std::process::Command;

use anyhow::Result;

fn e2e(arguments: &[&str]) -> Result<(bool, String)> {
    let output = Command::new(env!("CARGO_BIN_EXE_e2e")).args(arguments).output()?;
    Ok((output.status.success(), String::from_utf8(output.stdout)?))
}

#[test]
fn every_scenario_of_loopback_runs_captured() -> Result<()> {
    let (ok, listed) = e2e(&["netns", "--list"])?;
    assert!(ok);
    for scenario in mesh_test::scenario::ALL {
        assert!(listed.contains(&format!("{}: ", scenario.name)), "{} is missing", scenario.name);
    }
    Ok(())
}

#[test]
fn an_unknown_name_is_refused() -> Result<()> {
    let (ok, said) = e2e(&["netns", "no_such_test"])?;
    assert!(!ok && said.contains("there is no test no_such_test"), "{said}");
    Ok(())
}
