//! The command line: what may be asked, and with which exit status it ends.
//!
//! 0: done and fine; 1: the answer is bad news; 2: the command could not run.

mod analyze;
mod bug_report;
mod check;
mod cleanup;
mod client;
mod cluster;
mod completion;
mod dump;
mod explain;
mod install;
mod man;
mod plugin;
mod status;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::output::Output;
use cluster::{Cluster, ClusterOptions};
use plugin::CalledAs;

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
    /// Keep the agent's listening sockets open while it is started again after a crash.
    Hold(crate::agent::handover::HoldOptions),
    /// Run the certificate authority, one socket for each node.
    Controller(crate::controller::Options),
    /// Install Weft on a cluster, and wait until it is ready.
    Install(install::InstallOptions),
    /// Take Weft off a cluster: pods leave the mesh first.
    Uninstall(install::UninstallOptions),
    /// Whether a cluster or a node is fit for Weft, and whether Weft is well there.
    Check(check::Options),
    /// What the running agents have enrolled, and why not.
    Status(status::Options),
    /// Everything that the running agents have compiled.
    Dump(dump::Options),
    /// Why a connection is allowed or denied, and how it travels.
    Explain(explain::Options),
    /// Mistakes in the configuration, before it is applied.
    Analyze(analyze::Options),
    /// Remove everything that an agent left in the kernel and in network namespaces.
    Cleanup(cleanup::Options),
    /// Everything that helps to find a fault, in one .tar.gz without secrets.
    BugReport(bug_report::Options),
    /// The completion script of a shell.
    Completion(completion::Options),
    /// The manual pages.
    Man(man::Options),
}

/// How the answer looks.
#[derive(Debug, Args)]
struct OutputOption {
    /// How the answer looks.
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

/// Who is asked.
#[derive(Debug, Args)]
struct TargetOptions {
    /// Ask the agent of this machine at this admin socket [default: /run/weft/admin.sock where that exists, else
    /// the agents of the cluster].
    #[arg(long, value_name = "PATH", conflicts_with_all = ["kubeconfig", "context"])]
    socket: Option<PathBuf>,
    #[command(flatten)]
    cluster: ClusterOptions,
}

/// Who is asked.
enum Target {
    /// The agent that listens here.
    Socket(PathBuf),
    /// The agents of a cluster whose API server answers.
    Cluster(Box<Cluster>),
}

impl TargetOptions {
    fn target(&self) -> anyhow::Result<Target> {
        match self.chosen_socket() {
            Some(socket) => Ok(Target::Socket(socket)),
            None => Ok(Target::Cluster(Box::new(self.cluster.connect()?))),
        }
    }

    /// What was named; else, of an agent on this machine and a kubeconfig, what is there. A plugin of kubectl is
    /// about clusters.
    fn chosen_socket(&self) -> Option<PathBuf> {
        let plugin = CalledAs::of(std::env::args_os().next().as_ref()) == CalledAs::Plugin;
        match &self.socket {
            Some(socket) => Some(socket.clone()),
            None if self.cluster.is_given() || plugin => None,
            None if !Path::new(ADMIN_SOCKET).exists() && self.cluster.is_there() => None,
            None => Some(ADMIN_SOCKET.into()),
        }
    }
}

/// Which namespaces the answer is about.
#[derive(Debug, Args)]
struct NamespaceOptions {
    /// Only what is in this namespace.
    #[arg(short, long, value_name = "NAMESPACE", conflicts_with = "all_namespaces")]
    namespace: Option<String>,
    /// All namespaces (the default).
    #[arg(short = 'A', long)]
    all_namespaces: bool,
}

/// How a command that ran ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ended {
    Fine,
    BadNews,
}

/// Parses the command line and runs it.
pub(crate) fn main() -> ExitCode {
    let called = CalledAs::of(std::env::args_os().next().as_ref());
    if called == CalledAs::Completion {
        let words: Vec<String> = std::env::args().skip(1).collect();
        return end(crate::output::write(completion::for_kubectl(&Cli::command(), &words).as_bytes())
            .map(|()| Ended::Fine));
    }
    let command = Cli::command().bin_name(called.command_name());
    let cli = match command.try_get_matches().and_then(|matches| Cli::from_arg_matches(&matches)) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are answers, all else is a usage error.
            let code = if error.use_stderr() { 2 } else { 0 };
            let _ = error.print();
            return ExitCode::from(code);
        }
    };
    end(run(cli.command))
}

fn end(result: anyhow::Result<Ended>) -> ExitCode {
    match result {
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
        Command::Hold(options) => crate::agent::handover::hold(&options).map(|()| Ended::Fine),
        Command::Controller(options) => crate::controller::run(options).map(|()| Ended::Fine),
        Command::Install(options) => install::install(&options),
        Command::Uninstall(options) => install::uninstall(&options),
        Command::Check(options) => check::run(&options),
        Command::Status(options) => status::run(&options),
        Command::Dump(options) => dump::run(&options),
        Command::Explain(options) => explain::run(&options),
        Command::Analyze(options) => analyze::run(&options),
        Command::Cleanup(options) => cleanup::run(&options),
        Command::BugReport(options) => bug_report::run(&options),
        Command::Completion(options) => completion::run(&options, Cli::command()),
        Command::Man(options) => man::run(&options, Cli::command()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
