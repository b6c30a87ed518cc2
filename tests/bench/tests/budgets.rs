//! What a request may cost: the counts of `cargo xtask bench l7`, held where they are. Those of a build without optimisation
//! are as exact as those of one with it; they do not say what the mesh costs, but that it costs more than before.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::path::Path;

use weft_lab::{Cost, cost_of};

/// Allocations of one HTTP/1.1 request on one node: both sides' rules, read from the client and from the application. They
/// are 6.1 to 6.2, so one more is too many. The goal is 12 (row `l7.allocations`).
const ALLOCATIONS: f64 = 7.0;
/// Instructions of the same without optimisation, a tenth above the 204,000 that they are. With optimisation they are below
/// 40,000, which is the goal (row `l7.instructions`).
const INSTRUCTIONS: f64 = 225_000.0;
const FEW: u32 = 50;
const MANY: u32 = 150;

/// `None` where there is no valgrind.
fn of_one_request(more: &[&str]) -> Option<Cost> {
    let program = Path::new(env!("CARGO_BIN_EXE_request-bench"));
    let run = |count: u32| {
        let count = count.to_string();
        cost_of(program, &[&["--requests", &count], more].concat()).unwrap()
    };
    Some(run(MANY)?.of_each(run(FEW)?, f64::from(MANY - FEW)))
}

#[test]
fn a_request_costs_no_more_than_its_budget() {
    let (Some(meshed), Some(direct)) = (of_one_request(&[]), of_one_request(&["--between", "nothing"]))
    else {
        let missing = "valgrind is not installed: apt-get install -y --no-install-recommends valgrind";
        assert!(std::env::var_os("CI").is_none(), "{missing}");
        println!("SKIPPED a_request_costs_no_more_than_its_budget: {missing}");
        return;
    };
    let own = meshed.of_each(direct, 1.0);
    println!("{own:?}");
    assert!(own.allocations > 1.0 && own.instructions > 1000.0, "nothing was counted: {own:?}");
    assert!(own.allocations <= ALLOCATIONS, "{own:?}");
    assert!(own.instructions <= INSTRUCTIONS, "{own:?}");
}
