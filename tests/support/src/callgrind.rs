//! What a program costs in instructions and allocations, counted by callgrind: exact where time is noisy.

use std::collections::HashMap;
use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::command::run;

/// Functions of the C library that give memory.
const ALLOCATORS: [&str; 6] = ["malloc", "calloc", "realloc", "posix_memalign", "aligned_alloc", "memalign"];

/// Processors take a copy by a string instruction for one instruction, callgrind for one with each byte, which would drown
/// everything else: in loops of vector moves both count the same, and more than the processor had to do.
const PLAIN_COPIES: &str = "GLIBC_TUNABLES=glibc.cpu.x86_rep_movsb_threshold=1000000000:\
                            glibc.cpu.x86_rep_stosb_threshold=1000000000";

/// What a run of a program, or a part of it, has cost.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Cost {
    /// Instructions in user space.
    pub instructions: f64,
    /// Allocations; what grows in place or moves counts as one.
    pub allocations: f64,
}

impl Cost {
    /// The difference to a cheaper run, divided among `count`.
    pub fn of_each(self, cheaper: Self, count: f64) -> Self {
        Self {
            instructions: (self.instructions - cheaper.instructions) / count,
            allocations: (self.allocations - cheaper.allocations) / count,
        }
    }
}

/// Runs a program under `valgrind --tool=callgrind` and counts. `None` where there is no valgrind.
///
/// # Errors
/// The program fails, or its profile cannot be read.
pub fn cost_of(program: &Path, args: &[&str]) -> Result<Option<Cost>> {
    if run("valgrind", &["--version"]).is_err() {
        return Ok(None);
    }
    let profile = std::env::temp_dir().join(format!("callgrind.{}", std::process::id()));
    let out = format!("--callgrind-out-file={}", profile.display());
    let program = program.to_str().context("the program's path is UTF-8")?;
    let all = [&[PLAIN_COPIES, "valgrind", "--tool=callgrind", &out, program], args].concat();
    let ran = run("env", &all);
    let text = std::fs::read(&profile);
    // Whatever became of it, it is of no more use.
    let _ = std::fs::remove_file(&profile);
    ran?;
    cost(&String::from_utf8_lossy(&text.context("callgrind has written no profile")?)).map(Some)
}

/// Reads callgrind's output format: `summary:` has the instructions, `calls=` after a `cfn=` the calls of a function.
/// Names stand in full only where they come first; afterwards a number in parentheses stands for them.
fn cost(profile: &str) -> Result<Cost> {
    let mut names = HashMap::new();
    let mut cost = Cost::default();
    let mut called = "";
    for line in profile.lines() {
        if let Some(name) = line.strip_prefix("cfn=").or_else(|| line.strip_prefix("fn=")) {
            let (id, text) = name.split_once(' ').unwrap_or((name, ""));
            if !text.is_empty() {
                names.insert(id, text);
            }
            called = names.get(id).copied().unwrap_or(id);
        } else if let Some(calls) = line.strip_prefix("calls=") {
            if ALLOCATORS.contains(&called) {
                let count = calls.split(' ').next().and_then(|count| count.parse::<f64>().ok());
                cost.allocations += count.context("a number of calls is none")?;
            }
        } else if let Some(sum) = line.strip_prefix("summary: ").or_else(|| line.strip_prefix("totals: ")) {
            cost.instructions = sum.trim().parse().context("the sum of instructions is no number")?;
        }
    }
    if cost.instructions == 0.0 {
        bail!("the profile has no sum of instructions");
    }
    Ok(cost)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_of_allocators_are_counted_whoever_makes_them() {
        let profile = "fn=(1) main\n10 5\ncfn=(2) malloc\ncalls=3 0\n10 30\nfn=(3) other\ncfn=(2)\ncalls=4 0\n\
                       1 2\ncfn=(4) free\ncalls=9 0\n1 2\ncfn=(5) realloc'2\ncalls=1 0\n1 2\ntotals: 77\n";
        assert_eq!(cost(profile).unwrap(), Cost { instructions: 77.0, allocations: 7.0 });
        assert!(cost("").is_err());
    }

    #[test]
    fn a_difference_is_divided() {
        let (few, many) = (
            Cost { instructions: 100.0, allocations: 10.0 },
            Cost { instructions: 500.0, allocations: 30.0 },
        );
        assert_eq!(many.of_each(few, 10.0), Cost { instructions: 40.0, allocations: 2.0 });
    }
}
