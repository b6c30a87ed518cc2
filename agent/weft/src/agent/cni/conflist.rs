//! Lists of CNI plugins as text: our plugin goes in at the end, and out again.

use serde_json::{Map, Value, json};

/// The plugin's type: the name of its binary.
pub(super) const TYPE: &str = "weft-cni";

/// Our entry.
pub(super) fn entry(socket: &str) -> Value {
    json!({ "type": TYPE, "socket": socket })
}

/// What a file of the configuration directory is.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Kind {
    /// Several plugins, one after the other.
    List,
    /// One plugin.
    Single,
    /// Nothing that a runtime would use.
    Other,
}

pub(super) fn kind(config: &Value) -> Kind {
    let plugins = config.get("plugins").and_then(Value::as_array);
    match (plugins, config.get("type").and_then(Value::as_str)) {
        (Some(plugins), _) if !plugins.is_empty() => Kind::List,
        (None, Some(_)) => Kind::Single,
        (Some(_) | None, _) => Kind::Other,
    }
}

/// Why our plugin cannot be chained.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("its cniVersion {0} is older than 0.3.0, which has no chains of plugins: raise it to 0.3.1 or later")]
pub(super) struct TooOld(String);

/// The list with our plugin at its end; one plugin becomes a list. `None` when it is there already as it should be.
pub(super) fn with_plugin(config: &Value, entry: &Value) -> Result<Option<Value>, TooOld> {
    let mut list = match kind(config) {
        Kind::List => config.clone(),
        Kind::Single => list_of(config),
        Kind::Other => return Ok(None),
    };
    let version = list.get("cniVersion").and_then(Value::as_str).unwrap_or("0.1.0");
    if is_too_old(version) {
        return Err(TooOld(version.to_owned()));
    }
    let Some(plugins) = list.get_mut("plugins").and_then(Value::as_array_mut) else { return Ok(None) };
    if plugins.iter().any(|plugin| plugin == entry) {
        return Ok(None);
    }
    plugins.retain(|plugin| !is_ours(plugin));
    plugins.push(entry.clone());
    Ok(Some(list))
}

/// The list without our plugin; `None` when it is not in it.
pub(super) fn without_plugin(config: &Value) -> Option<Value> {
    let mut list = config.clone();
    let plugins = list.get_mut("plugins")?.as_array_mut()?;
    let before = plugins.len();
    plugins.retain(|plugin| !is_ours(plugin));
    (plugins.len() < before).then_some(list)
}

fn is_ours(plugin: &Value) -> bool {
    plugin.get("type").and_then(Value::as_str) == Some(TYPE)
}

/// One plugin as a list of one. Without a version of its own it gets the first that knows chains: plugins of today know
/// it as well.
fn list_of(plugin: &Value) -> Value {
    let version = plugin.get("cniVersion").and_then(Value::as_str);
    let version = version.filter(|version| !is_too_old(version)).unwrap_or("0.3.1");
    let mut list = Map::new();
    list.insert("cniVersion".into(), version.into());
    list.insert("name".into(), plugin.get("name").cloned().unwrap_or_else(|| "network".into()));
    list.insert("plugins".into(), Value::Array(vec![plugin.clone()]));
    Value::Object(list)
}

fn is_too_old(version: &str) -> bool {
    let mut parts = version.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
    (parts.next().unwrap_or(0), parts.next().unwrap_or(0)) < (0, 3)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bridge() -> Value {
        json!({"cniVersion":"0.4.0","name":"k8s","plugins":[{"type":"bridge"},{"type":"portmap"}]})
    }

    #[test]
    fn it_goes_in_at_the_end_once_and_out_again() {
        let ours = entry("/run/weft/cni.sock");
        let list = with_plugin(&bridge(), &ours).unwrap().unwrap();
        assert_eq!(list["plugins"].as_array().unwrap().last(), Some(&ours));
        assert_eq!(list["plugins"].as_array().unwrap().len(), 3);
        assert_eq!(with_plugin(&list, &ours).unwrap(), None);
        assert_eq!(without_plugin(&list), Some(bridge()));
        assert_eq!(without_plugin(&bridge()), None);
    }

    #[test]
    fn another_socket_takes_the_place_of_the_first() {
        let list = with_plugin(&bridge(), &entry("/a")).unwrap().unwrap();
        let list = with_plugin(&list, &entry("/b")).unwrap().unwrap();
        assert_eq!(list["plugins"].as_array().unwrap().len(), 3);
        assert_eq!(list["plugins"][2]["socket"], "/b");
    }

    #[test]
    fn one_plugin_becomes_a_list() {
        for (version, expected) in [(Some("1.0.0"), "1.0.0"), (Some("0.2.0"), "0.3.1"), (None, "0.3.1")] {
            let mut single = json!({"name":"multus","type":"multus"});
            if let Some(version) = version {
                single["cniVersion"] = version.into();
            }
            let list = with_plugin(&single, &entry("/s")).unwrap().unwrap();
            assert_eq!(list["cniVersion"], expected);
            assert_eq!(list["name"], "multus");
            assert_eq!(list["plugins"][0], single);
            assert_eq!(list["plugins"][1]["type"], TYPE);
        }
    }

    #[test]
    fn a_list_without_chains_is_left_alone() {
        let mut list = bridge();
        list["cniVersion"] = "0.2.0".into();
        assert_eq!(with_plugin(&list, &entry("/s")), Err(TooOld("0.2.0".into())));
    }

    #[test]
    fn nonsense_is_not_a_list() {
        for config in
            [json!([]), json!({}), json!({"plugins":[]}), json!({"plugins":{}}), json!(7), Value::Null]
        {
            assert_eq!(kind(&config), Kind::Other, "{config}");
            assert_eq!(with_plugin(&config, &entry("/s")), Ok(None));
            assert_eq!(without_plugin(&config), None);
        }
    }
}
