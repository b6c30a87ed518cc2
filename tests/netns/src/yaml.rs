//! Objects that tests write, with as few parameters as they need.

/// A Namespace.
pub fn namespace(name: &str, enabled: bool, annotations: &[(&str, &str)]) -> String {
    let mesh = if enabled { "enabled" } else { "disabled" };
    let annotations: Vec<String> =
        annotations.iter().map(|(key, value)| format!("{key}: {value:?}")).collect();
    format!(
        "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: {name}\n  labels: {{weft.dev/mesh: {mesh}}}\n  \
         annotations: {{{}}}\n",
        annotations.join(", ")
    )
}

/// An AuthorizationPolicy of namespace `shop` for the pods with label `app`; `rules` is YAML flow.
pub fn policy(name: &str, app: &str, action: &str, rules: &str) -> String {
    policy_with(name, app, action, rules, "{}")
}

/// The same with annotations (YAML flow).
pub fn policy_with(name: &str, app: &str, action: &str, rules: &str, annotations: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata:\n  name: {name}\n  \
         namespace: shop\n  annotations: {annotations}\nspec:\n  selector: {{matchLabels: {{app: {app}}}}}\n  \
         action: {action}\n  rules: {rules}\n"
    )
}

/// A rule list that matches one service account of namespace `shop`.
pub fn from_account(account: &str) -> String {
    format!("[{{from: [{{source: {{principals: [cluster.local/ns/shop/sa/{account}]}}}}]}}]")
}

/// A PeerAuthentication of namespace `shop` for the pods with label `app`.
pub fn peer_authentication(app: &str, mode: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata:\n  name: {app}\n  \
         namespace: shop\nspec:\n  selector: {{matchLabels: {{app: {app}}}}}\n  mtls: {{mode: {mode}}}\n"
    )
}

/// Settings of the mesh: every connection is logged, as JSON.
pub const LOG_EVERYTHING: &str = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: weft, namespace: weft-system}\n\
    data:\n  mesh: |\n    accessLogFile: /dev/stdout\n    accessLogEncoding: JSON\n";
