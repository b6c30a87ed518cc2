//! AuthorizationPolicies of one workload, indexed so that many policies cost no more than one.

/// The policies that select one workload.
#[derive(Debug, Clone, Default)]
pub struct PolicySet {}
