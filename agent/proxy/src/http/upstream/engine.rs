//! Who drives an HTTP/1.1 connection: the request that is on it, in its own task, so that no other task need be woken for
//! it; between requests, and for requests with a body, the connection's own task.

use std::cell::RefCell;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use futures_util::task::AtomicWaker;

type Machine = Pin<Box<dyn Future<Output = hyper::Result<()>>>>;

/// A connection that more than one task drives, one at a time.
pub(super) struct Engine {
    /// `None` when the connection is over.
    machine: RefCell<Option<Machine>>,
    bell: Arc<Bell>,
    /// Rings the bell.
    at_rest: Waker,
}

/// Wakes the connection's own task, unless a request drives the connection and sees by itself what happens on it.
#[derive(Default)]
struct Bell {
    driven: AtomicBool,
    own: AtomicWaker,
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.driven.load(Ordering::Relaxed) {
            self.own.wake();
        }
    }
}

impl Engine {
    /// A connection that its own task drives.
    pub(super) fn new(machine: Machine) -> Rc<Self> {
        let bell = Arc::new(Bell::default());
        let at_rest = Waker::from(bell.clone());
        Rc::new(Self { machine: RefCell::new(Some(machine)), bell, at_rest })
    }

    /// Drives the connection; ready when it is over. Its users see an error of it themselves.
    fn poll(&self, cx: &mut Context<'_>) -> Poll<()> {
        let Ok(mut slot) = self.machine.try_borrow_mut() else { return Poll::Pending };
        let polled = slot.as_mut().map(|machine| machine.as_mut().poll(cx));
        if polled.is_some_and(|polled| polled.is_pending()) {
            return Poll::Pending;
        }
        let over = slot.take();
        drop(slot);
        drop(over);
        Poll::Ready(())
    }

    fn poll_at_rest(&self) -> Poll<()> {
        self.poll(&mut Context::from_waker(&self.at_rest))
    }

    fn close(&self) {
        let machine = self.machine.try_borrow_mut().ok().and_then(|mut slot| slot.take());
        drop(machine);
    }
}

/// The connection's own task. Dropped, it closes the connection.
pub(super) struct Own(pub(super) Rc<Engine>);

impl Own {
    /// Drives the connection unless a request does; ready when it is over.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Self(engine) = self;
        engine.bell.own.register(cx.waker());
        if engine.bell.driven.load(Ordering::Relaxed) {
            let over = engine.machine.try_borrow().is_ok_and(|machine| machine.is_none());
            return if over { Poll::Ready(()) } else { Poll::Pending };
        }
        engine.poll_at_rest()
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// A request that drives its connection. Dropped, it gives it back to the connection's own task.
pub(super) struct Driving(Rc<Engine>);

impl Driving {
    /// Takes the connection over.
    pub(super) fn begin(engine: &Rc<Engine>) -> Self {
        engine.bell.driven.store(true, Ordering::Relaxed);
        Self(engine.clone())
    }

    /// Drives the connection as far as it goes; `cx` is woken when it goes further.
    pub(super) fn drive(&self, cx: &mut Context<'_>) {
        if self.0.poll(cx).is_ready() {
            self.0.bell.own.wake();
        }
    }
}

impl Drop for Driving {
    fn drop(&mut self) {
        let engine = &self.0;
        engine.bell.driven.store(false, Ordering::Relaxed);
        if std::thread::panicking() {
            engine.close();
        }
        // Whatever the request has left to do, and what happens from now on, is for the other task.
        if engine.poll_at_rest().is_ready() {
            engine.bell.own.wake();
        }
    }
}
