//! What a process that runs for long gives back once it has started.

use std::time::Duration;

use weft_kernel::program;

/// After this long, nothing of the start is under way any more.
const STARTED: Duration = Duration::from_secs(1);

/// Gives back, a moment from now, the parts of the program that only the start has needed.
pub(crate) fn give_back_start() {
    tokio::spawn(async {
        tokio::time::sleep(STARTED).await;
        let given = tokio::task::spawn_blocking(program::release_pages).await;
        if let Ok(Err(error)) = given {
            tracing::debug!(%error, "the program's pages cannot be given back");
        }
    });
}
