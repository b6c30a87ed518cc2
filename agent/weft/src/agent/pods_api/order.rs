//! Writes to the API server, one after the other: also one that was cut off is over before the next begins.

use std::future::Future;

use kube::Error;
use tokio::task::JoinHandle;

/// What is on its way.
#[derive(Debug, Default)]
pub(super) struct Order(Option<JoinHandle<Result<(), Error>>>);

impl Order {
    /// Sends something and waits for the answer.
    ///
    /// # Cancel safety
    /// Dropped, it goes on: the server may have it already, and what is done with it would come at any time.
    pub(super) async fn send(
        &mut self,
        request: impl Future<Output = Result<(), Error>> + Send + 'static,
    ) -> Result<(), Error> {
        self.settle().await;
        let answer = self.0.insert(tokio::spawn(request)).await;
        self.0 = None;
        // A request that panics has no answer; the hook of panics tells of it.
        answer.unwrap_or(Ok(()))
    }

    /// Waits for what was cut off.
    pub(super) async fn settle(&mut self) {
        if let Some(sent) = &mut self.0 {
            // Whoever wanted to know what came of it has gone.
            let _ = sent.await;
            self.0 = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn what_was_cut_off_is_over_before_what_follows() {
        let mut order = Order::default();
        let written = Arc::new(Mutex::new(Vec::new()));
        let (arrives, on_its_way) = oneshot::channel::<()>();
        let writes = |what: &'static str| {
            let written = written.clone();
            move || written.lock().unwrap().push(what)
        };
        let write = writes("enrolled");
        let slow = async move {
            on_its_way.await.unwrap();
            write();
            Ok(())
        };
        tokio::select! {
            biased;
            _ = order.send(slow) => panic!("it is on its way"),
            () = tokio::task::yield_now() => {}
        }
        let write = writes("removed");
        let removal = order.send(async move {
            write();
            Ok(())
        });
        let (removed, ()) = tokio::join!(removal, async { arrives.send(()).unwrap() });
        removed.unwrap();
        assert_eq!(*written.lock().unwrap(), ["enrolled", "removed"]);
    }
}
