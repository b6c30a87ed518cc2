//! Ctrl-C and SIGTERM.

use tokio::signal::unix::{Signal, SignalKind, signal};

/// From here on, SIGINT and SIGTERM remove the labs of this process and end it.
///
/// Handlers, and not a mask that is waited on, because programs that are started would inherit the mask.
pub(crate) fn remove_labs_when_interrupted() {
    std::thread::spawn(|| {
        // Without handlers the janitor of each lab does it alone, a moment after our end.
        let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_io().build() else { return };
        let number = runtime.block_on(async {
            let mut interrupt = signal(SignalKind::interrupt()).ok()?;
            let mut terminate = signal(SignalKind::terminate()).ok()?;
            Some(either(&mut interrupt, &mut terminate).await)
        });
        let Some(number) = number else { return };
        eprintln!("\nCleaning up …");
        for failure in weft_lab::remove_labs_of_this_process() {
            eprintln!("{failure}");
        }
        std::process::exit(128 + number);
    });
}

/// The number of the signal that came first.
async fn either(interrupt: &mut Signal, terminate: &mut Signal) -> i32 {
    tokio::select! {
        _ = interrupt.recv() => SignalKind::interrupt().as_raw_value(),
        _ = terminate.recv() => SignalKind::terminate().as_raw_value(),
    }
}
