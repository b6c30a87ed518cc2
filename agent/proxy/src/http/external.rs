//! External authorisation (AP-17): a CUSTOM policy has somebody else asked before the application is.

use std::rc::Rc;
use std::sync::Arc;

use weft_core::Snapshot;
use weft_core::decide::InboundRequest;
use weft_core::decide::inbound::ExternalCheck;
use weft_core::resource::virtual_service::HeaderChanges;
use weft_core::snapshot::LocalWorkload;

use super::flags::Reason;
use super::reply::Reply;
use crate::pod::Pod;
use crate::worker::Worker;

/// Asks one provider; the headers that it wants changed, or its refusal.
pub(crate) async fn check(
    _worker: &Rc<Worker>,
    _snapshot: &Arc<Snapshot>,
    _of: (&Arc<LocalWorkload>, &Arc<Pod>),
    check: &ExternalCheck,
    _asked: &InboundRequest<'_>,
) -> Result<HeaderChanges, Reply> {
    let policy = format!("ns[{}]-policy[{}]-rule[{}]", check.object.namespace, check.object.name, check.rule);
    let reply = Reply::flagged(check.provider.status_on_error, "", "ext_authz_error", Reason::UAEX);
    Err(Reply { policy: Some(policy), ..reply })
}
