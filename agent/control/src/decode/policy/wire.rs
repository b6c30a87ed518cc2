//! AuthorizationPolicy as it is written. Unknown fields are errors: a misspelt condition would match everything.

use serde::Deserialize;

use super::super::fields::{List, Text};
use super::super::validate::SelectorWire;
use super::targets::TargetRefWire;

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[serde(expecting = "a map of fields")]
pub(super) struct PolicySpec<'a> {
    #[serde(borrow, default)]
    pub(super) selector: Option<SelectorWire<'a>>,
    #[serde(borrow, default)]
    pub(super) target_ref: Option<TargetRefWire<'a>>,
    #[serde(borrow, default)]
    pub(super) target_refs: List<TargetRefWire<'a>>,
    #[serde(borrow, default)]
    pub(super) action: Option<Text<'a>>,
    #[serde(borrow, default)]
    pub(super) provider: Option<ProviderWire<'a>>,
    #[serde(borrow, default)]
    pub(super) rules: List<RuleWire<'a>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[serde(expecting = "a map of fields")]
pub(super) struct ProviderWire<'a> {
    #[serde(borrow, default)]
    pub(super) name: Text<'a>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[serde(expecting = "a rule")]
pub(super) struct RuleWire<'a> {
    #[serde(borrow, default)]
    pub(super) from: List<FromWire<'a>>,
    #[serde(borrow, default)]
    pub(super) to: List<ToWire<'a>>,
    #[serde(borrow, default)]
    pub(super) when: List<ConditionWire<'a>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[serde(expecting = "a map with `source`")]
pub(super) struct FromWire<'a> {
    #[serde(borrow, default)]
    pub(super) source: Option<SourceWire<'a>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[serde(expecting = "a map with `operation`")]
pub(super) struct ToWire<'a> {
    #[serde(borrow, default)]
    pub(super) operation: Option<OperationWire<'a>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[serde(expecting = "a map of fields")]
pub(super) struct SourceWire<'a> {
    #[serde(borrow, default)]
    pub(super) principals: List<Text<'a>>,
    #[serde(borrow, default)]
    pub(super) not_principals: List<Text<'a>>,
    #[serde(borrow, default)]
    pub(super) request_principals: List<Text<'a>>,
    #[serde(borrow, default)]
    pub(super) not_request_principals: List<Text<'a>>,
    #[serde(borrow, default)]
    pub(super) namespaces: List<Text<'a>>,
    #[serde(borrow, default)]
    pub(super) not_namespaces: List<Text<'a>>,
    #[serde(borrow, default)]
    pub(super) service_accounts: List<Text<'a>>,
    #[serde(borrow, default)]
    pub(super) not_service_accounts: List<Text<'a>>,
    #[serde(borrow, default)]
    pub(super) trust_domains: List<Text<'a>>,
    #[serde(borrow, default)]
    pub(super) not_trust_domains: List<Text<'a>>,
    #[serde(borrow, default)]
    pub(super) ip_blocks: List<Text<'a>>,
    #[serde(borrow, default)]
    pub(super) not_ip_blocks: List<Text<'a>>,
    #[serde(borrow, default)]
    pub(super) remote_ip_blocks: List<Text<'a>>,
    #[serde(borrow, default)]
    pub(super) not_remote_ip_blocks: List<Text<'a>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[serde(expecting = "a map of fields")]
pub(super) struct OperationWire<'a> {
    #[serde(borrow, default)]
    pub(super) hosts: List<Text<'a>>,
    #[serde(borrow, default)]
    pub(super) not_hosts: List<Text<'a>>,
    #[serde(borrow, default)]
    pub(super) ports: List<Text<'a>>,
    #[serde(borrow, default)]
    pub(super) not_ports: List<Text<'a>>,
    #[serde(borrow, default)]
    pub(super) methods: List<Text<'a>>,
    #[serde(borrow, default)]
    pub(super) not_methods: List<Text<'a>>,
    #[serde(borrow, default)]
    pub(super) paths: List<Text<'a>>,
    #[serde(borrow, default)]
    pub(super) not_paths: List<Text<'a>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[serde(expecting = "a condition")]
pub(super) struct ConditionWire<'a> {
    #[serde(borrow, default)]
    pub(super) key: Text<'a>,
    #[serde(borrow, default)]
    pub(super) values: List<Text<'a>>,
    #[serde(borrow, default)]
    pub(super) not_values: List<Text<'a>>,
}
