//! Ctrl-C and SIGTERM.

use nix::sys::signal::{SigSet, Signal};

/// From here on, SIGINT and SIGTERM remove the labs of this process and end it.
///
/// To be called before any thread is started, because threads inherit what is blocked. Programs that are
/// started begin with nothing blocked.
pub(crate) fn remove_labs_when_interrupted() {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGINT);
    signals.add(Signal::SIGTERM);
    if signals.thread_block().is_err() {
        // Then the janitor of each lab does it alone.
        return;
    }
    std::thread::spawn(move || {
        let Ok(signal) = signals.wait() else { return };
        eprintln!("\nCleaning up after {signal} …");
        for failure in weft_lab::remove_labs_of_this_process() {
            eprintln!("{failure}");
        }
        std::process::exit(128 + signal as i32);
    });
}
