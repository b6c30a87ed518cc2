//! Servers, clients and load generators that run inside the pods of a lab. Every mode is bounded in time
//! (servers live until they are killed) and prints JSON, one object on a line.
#![forbid(unsafe_code)]

mod app;
mod body;
mod browse;
mod client;
mod dial;
mod grpc;
mod hold;
mod janitor;
mod latency;
mod load;
mod reactor;
mod relay;
mod serve;
mod steady;
mod watch;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(about = "Servers, clients and load generators for the pods of a lab")]
struct Args {
    #[command(subcommand)]
    mode: Mode,
}

#[derive(Debug, Subcommand)]
enum Mode {
    /// Serve: `KIND:PORT` each, IPv4 and IPv6. Kinds: echo, http, sink, small, who, server-first, source, stall, reset, urgent, drain.
    Serve(serve::ServeArgs),
    /// An HTTP application (HTTP/1.1, HTTP/2, gRPC, WebSocket) that says who answers and fails as it is told to.
    App(app::AppArgs),
    /// Copy what connections bring to another address, and what comes back.
    Relay(relay::RelayArgs),
    /// HTTP requests, and counts of what became of them.
    Http(browse::HttpArgs),
    /// One HTTP request.
    Get(client::GetArgs),
    /// One connection.
    Connect(client::ConnectArgs),
    /// Send bytes to an echo server and compare what comes back.
    Echo(client::EchoArgs),
    /// Urgent data to an `urgent` server, and what it makes of it.
    Urgent(client::UrgentArgs),
    /// Many short connections.
    Churn(client::ChurnArgs),
    /// Held connections; `check` on standard input sends a byte over each, end of input ends it.
    Hold(hold::HoldArgs),
    /// Requests, new connections and held ones at a steady rate until standard input ends, and what became of them.
    Steady(steady::SteadyArgs),
    /// New connections without pause; prints a line whenever their outcome changes.
    Watch(watch::WatchArgs),
    /// Measure.
    #[command(subcommand)]
    Load(load::LoadMode),
    /// Keep a processor awake until killed (to be run with SCHED_IDLE).
    Spin,
    /// Wait for the end of standard input, then remove a lab.
    Janitor(janitor::JanitorArgs),
    /// Make a small lab, print its id, and remove it at the end of standard input.
    Lab,
}

fn main() -> ExitCode {
    let done = match Args::parse().mode {
        Mode::Serve(args) => serve::run(&args),
        Mode::App(args) => app::run(&args),
        Mode::Relay(args) => relay::run(&args),
        Mode::Http(args) => browse::run(&args),
        Mode::Get(args) => client::get(&args),
        Mode::Connect(args) => client::connect(&args),
        Mode::Echo(args) => client::echo(&args),
        Mode::Urgent(args) => client::urgent(&args),
        Mode::Churn(args) => client::churn(&args),
        Mode::Hold(args) => hold::run(&args),
        Mode::Steady(args) => steady::run(&args),
        Mode::Watch(args) => watch::run(&args),
        Mode::Load(mode) => load::run(&mode),
        Mode::Spin => loop {
            std::hint::spin_loop();
        },
        Mode::Janitor(args) => janitor::run(&args),
        Mode::Lab => janitor::own_a_lab(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            println!("{}", serde_json::json!({ "error": format!("{e:#}") }));
            ExitCode::FAILURE
        }
    }
}
