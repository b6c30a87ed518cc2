//! Lets a request in: a connection for it, within the limits of its cluster.
//!
//! A request takes a connection that is free. Where none is, and the cluster has room for one more connection and
//! one more request, one is opened. What goes beyond is pending: it waits for a connection, or, where only
//! `http2MaxRequests` is in the way, is refused unless a request ends at once. What exceeds
//! `http1MaxPendingRequests` is refused without waiting (E26, E27).

use std::rc::Rc;
use std::sync::Arc;

use weft_telemetry::ClusterEvent;

use super::UpstreamProtocol;
use super::connection::{self, Shared};
use super::dial::Dial;
use super::exchange::{Active, Carrier, Exchange, Home};
use super::limits::{Counted, Grant, Permit, Slot};
use super::local::LocalHost;
use super::pool::{Pool, Settings};
use super::state::ClusterState;
use crate::account::Failure;
use crate::worker::Worker;

/// HTTP/2 connections that one request opens in vain.
const ATTEMPTS: usize = 3;

/// A request that wants to be let in.
pub(super) struct Admission<'a> {
    /// Where.
    pub(super) worker: &'a Rc<Worker>,
    /// Its cluster.
    pub(super) cluster: &'a Arc<ClusterState>,
    /// Its endpoint.
    pub(super) host: &'a Rc<LocalHost>,
    /// What the policy says.
    pub(super) settings: Settings,
    /// How a connection is opened.
    pub(super) dial: &'a Dial,
    /// What is spoken.
    pub(super) protocol: UpstreamProtocol,
}

/// Why a request is not let in.
#[derive(Debug)]
pub(super) enum Overflow {
    /// A limit; the text says which.
    Limit(&'static str),
    /// There is no connection.
    Failure(Failure),
}

const ACTIVE: Overflow = Overflow::Limit("the cluster has http2MaxRequests requests outstanding");
const PENDING: Overflow =
    Overflow::Limit("the cluster has http1MaxPendingRequests requests waiting for a connection");

impl From<Failure> for Overflow {
    fn from(failure: Failure) -> Self {
        Self::Failure(failure)
    }
}

/// What a request may use.
enum Ready {
    /// A connection.
    Connection(connection::Single),
    /// The place for one.
    Slot(Slot),
}

impl Admission<'_> {
    /// Lets a request in. `node` says that its destination is served in this process: then it has the place of a
    /// connection (with HTTP/1.1), but none is opened.
    pub(super) async fn enter(&self, node: bool, active: Active) -> Result<Exchange, Overflow> {
        let pool = self.host.pool(self.dial, self.protocol);
        let limit = self.settings.limits.connections;
        self.cluster.keep_within(limit);
        if self.cluster.is_over() {
            pool.shed(self.cluster, limit);
        }
        let (permit, carrier) = match (self.protocol, node) {
            (UpstreamProtocol::Http1, _) => self.enter_single(&pool, node).await?,
            (UpstreamProtocol::Http2, false) => self.enter_shared(&pool).await?,
            (UpstreamProtocol::Http2, true) => (self.request_or_overflow().await?, Carrier::Node(None)),
        };
        let home = Home {
            worker: self.worker.clone(),
            pool,
            cluster: Some(self.cluster.clone()),
            settings: self.settings,
        };
        Ok(Exchange::new(Some(permit), Some(active), carrier, home))
    }

    fn request(&self) -> Option<Permit> {
        self.cluster.permit(Counted::Request, self.settings.limits.requests)
    }

    fn active_overflow(&self) -> Overflow {
        self.cluster.counters.count(ClusterEvent::ActiveOverflow);
        ACTIVE
    }

    fn pending(&self) -> Result<Permit, Overflow> {
        let Some(pending) = self.cluster.permit(Counted::Pending, self.settings.limits.pending) else {
            self.cluster.counters.count(ClusterEvent::PendingOverflow);
            return Err(PENDING);
        };
        self.cluster.counters.count(ClusterEvent::Pending);
        Ok(pending)
    }

    /// Beyond `http2MaxRequests` a request is pending for a moment, in which another may end (E27).
    async fn request_or_overflow(&self) -> Result<Permit, Overflow> {
        if let Some(permit) = self.request() {
            return Ok(permit);
        }
        let pending = self.pending()?;
        tokio::task::yield_now().await;
        drop(pending);
        self.request().ok_or_else(|| self.active_overflow())
    }

    async fn enter_single(&self, pool: &Rc<Pool>, node: bool) -> Result<(Permit, Carrier), Overflow> {
        let (permit, ready) = self.ready(pool).await?;
        let carrier = match ready {
            Ready::Connection(connection) => Carrier::Single(connection),
            Ready::Slot(slot) if node => Carrier::Node(Some(slot)),
            Ready::Slot(slot) => {
                let place = (Some(slot), &self.settings);
                let opening = connection::single(self.worker, pool, self.dial, place);
                let connection = Box::pin(opening).await?;
                self.cluster.counters.count(ClusterEvent::Connection);
                Carrier::Single(connection)
            }
        };
        Ok((permit, carrier))
    }

    async fn ready(&self, pool: &Rc<Pool>) -> Result<(Permit, Ready), Overflow> {
        if let Some(connection) = pool.take(&self.settings) {
            return self.with_request(pool, Ready::Connection(connection));
        }
        let slot = match (self.request(), self.connect()) {
            (Some(request), Some(slot)) => return Ok((request, Ready::Slot(slot))),
            (Some(_) | None, slot) => slot,
        };
        let pending = self.pending()?;
        let ready = match slot {
            Some(slot) => {
                tokio::task::yield_now().await;
                Ready::Slot(slot)
            }
            None => self.wait(pool).await?,
        };
        drop(pending);
        self.with_request(pool, ready)
    }

    fn connect(&self) -> Option<Slot> {
        let slot = self.cluster.connect(self.settings.limits.connections, &self.host.host);
        if slot.is_none() {
            self.cluster.counters.count(ClusterEvent::ConnectionOverflow);
        }
        slot
    }

    fn with_request(&self, pool: &Rc<Pool>, ready: Ready) -> Result<(Permit, Ready), Overflow> {
        if let Some(request) = self.request() {
            return Ok((request, ready));
        }
        match ready {
            Ready::Connection(connection) => {
                pool.put(connection, Some(self.cluster), &self.settings);
            }
            Ready::Slot(slot) => drop(slot),
        }
        Err(self.active_overflow())
    }

    /// Waits for a connection, or the place for one.
    async fn wait(&self, pool: &Rc<Pool>) -> Result<Ready, Overflow> {
        loop {
            let (id, granted) = self.cluster.wait(pool.place(), &self.host.host);
            let promise = Promise { admission: self, pool, id };
            let grant = granted.await;
            match grant {
                Ok(Grant::Slot(slot)) => return Ok(Ready::Slot(slot)),
                Ok(Grant::Connection) => {
                    let handed = pool.take_handed(promise.id);
                    if let Some(connection) = handed.filter(|connection| connection.sender.is_ready()) {
                        return Ok(Ready::Connection(connection));
                    }
                }
                // Whoever waits is only ever told something; this keeps the type honest.
                Err(_) => return Err(PENDING),
            }
        }
    }

    async fn enter_shared(&self, pool: &Rc<Pool>) -> Result<(Permit, Carrier), Overflow> {
        let mut attempts = 0;
        loop {
            if let Some(connection) = pool.share(&self.settings, false) {
                return self.on_shared(connection);
            }
            let request = self.request_or_overflow().await?;
            if let Some(attempt) = pool.attempt() {
                attempt.over().await?;
                continue;
            }
            let slot = match self.connect_shared(pool) {
                Place::Slot(slot) => slot,
                Place::Full(connection) => return Ok((request, Carrier::Shared(connection))),
                Place::Wait => {
                    drop(request);
                    let pending = self.pending()?;
                    let ready = self.wait(pool).await?;
                    drop(pending);
                    match ready {
                        Ready::Slot(slot) => slot,
                        Ready::Connection(_) => continue,
                    }
                }
            };
            attempts += 1;
            let attempt = pool.start(self.worker, self.dial, Some(slot), &self.settings);
            attempt.over().await?;
            self.cluster.counters.count(ClusterEvent::Connection);
            if attempts == ATTEMPTS && pool.share(&self.settings, true).is_none() {
                let details = format!("{} closes every connection at once", self.dial.endpoint);
                return Err(Failure::new("UF", "connect", details).into());
            }
        }
    }

    fn on_shared(&self, connection: Rc<Shared>) -> Result<(Permit, Carrier), Overflow> {
        let request = self.request().ok_or_else(|| self.active_overflow())?;
        Ok((request, Carrier::Shared(connection)))
    }

    /// A place for another connection. A worker without any gets one in any case: it could wait for ever for
    /// those of the others, which are never idle.
    fn connect_shared(&self, pool: &Rc<Pool>) -> Place {
        if let Some(slot) = self.connect() {
            return Place::Slot(slot);
        }
        if let Some(connection) = pool.share(&self.settings, true) {
            return Place::Full(connection);
        }
        if pool.is_live() { Place::Wait } else { Place::Slot(self.cluster.connect_anyway(&self.host.host)) }
    }
}

/// What there is for a request where all HTTP/2 connections are full.
enum Place {
    /// The place for another connection.
    Slot(Slot),
    /// Only a full connection: the peer lets the request wait.
    Full(Rc<Shared>),
    /// Only connections that take no more requests.
    Wait,
}

/// A connection that may be promised to somebody who waits. If it comes too late it goes to the next one.
struct Promise<'a> {
    admission: &'a Admission<'a>,
    pool: &'a Rc<Pool>,
    id: u64,
}

impl Drop for Promise<'_> {
    fn drop(&mut self) {
        if let Some(connection) = self.pool.take_handed(self.id) {
            let Admission { cluster, settings, .. } = self.admission;
            self.pool.put(connection, Some(cluster), settings);
        }
    }
}
