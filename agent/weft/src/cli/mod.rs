//! The command line: what may be asked, and with which exit status it ends.
//!
//! 0: done and fine; 1: the answer is bad news; 2: the command could not run.

mod analyze;
mod cleanup;
mod client;
mod dump;
mod explain;
mod status;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::output::Output;

/// Where a running agent listens unless it is told otherwise.
pub(crate) const ADMIN_SOCKET: &str = "/run/weft/admin.sock";

#[derive(Debug, Parser)]
#[command(
    name = "weft",
    version,
    about = "A service mesh for the pods of one node: agent, controller, tools"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the agent of one node.
    Agent(Box<crate::agent::Options>),
    /// Run the certificate authority, one socket for each node.
    Controller(crate::controller::Options),
    /// What the running agent has enrolled, and why not.
    Status(status::Options),
    /// Everything that the running agent has compiled.
    Dump(dump::Options),
    /// Why a connection is allowed or denied, and how it travels.
    Explain(explain::Options),
    /// Mistakes in the configuration, before it is applied.
    Analyze(analyze::Options),
    /// Remove everything that an agent left in the kernel and in network namespaces.
    Cleanup(cleanup::Options),
}

/// How the answer looks.
#[derive(Debug, Args)]
struct OutputOption {
    /// How the answer looks.
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

/// The agent that is asked.
#[derive(Debug, Args)]
struct SocketOption {
    /// Admin socket of the running agent.
    #[arg(long, value_name = "PATH", default_value = ADMIN_SOCKET)]
    socket: PathBuf,
}

/// How a command that ran ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ended {
    Fine,
    BadNews,
}

/// Parses the command line and runs it.
pub(crate) fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are answers, all else is a usage error.
            let code = if error.use_stderr() { 2 } else { 0 };
            let _ = error.print();
            return ExitCode::from(code);
        }
    };
    match run(cli.command) {
        Ok(Ended::Fine) => ExitCode::SUCCESS,
        Ok(Ended::BadNews) => ExitCode::from(1),
        Err(error) => {
            eprintln!("weft: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn run(command: Command) -> anyhow::Result<Ended> {
    match command {
        Command::Agent(options) => crate::agent::run(*options).map(|()| Ended::Fine),
        Command::Controller(options) => crate::controller::run(options).map(|()| Ended::Fine),
        Command::Status(options) => status::run(&options),
        Command::Dump(options) => dump::run(&options),
        Command::Explain(options) => explain::run(&options),
        Command::Analyze(options) => analyze::run(&options),
        Command::Cleanup(options) => cleanup::run(&options),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
