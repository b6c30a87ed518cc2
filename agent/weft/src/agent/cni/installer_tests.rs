use std::collections::BTreeMap;

use tempfile::TempDir;

use super::*;

const LIST: &str =
    "{ \"name\":\"k8s\",\n\t\"cniVersion\":\"0.4.0\", \"plugins\":[ {\"type\":\"bridge\", \"mtu\":1.50} ] }";
const SINGLE: &str = "{\"type\":\"multus\",\"name\":\"m\",\"cniVersion\":\"0.3.1\"}\n\n";

struct Node {
    dir: TempDir,
    installation: Installation,
}

impl Node {
    fn with(files: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let [bin_dir, conf_dir] = ["bin", "net.d"].map(|name| dir.path().join(name));
        fs::create_dir(&bin_dir).unwrap();
        fs::create_dir(&conf_dir).unwrap();
        let plugin = dir.path().join("weft-cni");
        fs::write(&plugin, "the plugin").unwrap();
        let installation = Installation { bin_dir, conf_dir, plugin, socket: "/run/weft/cni.sock".into() };
        let node = Self { dir, installation };
        files.iter().for_each(|(name, text)| node.write(name, text));
        node
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.installation.conf_dir.join(name), text).unwrap();
    }

    fn configuration(&self) -> BTreeMap<String, String> {
        let entries = fs::read_dir(&self.installation.conf_dir).unwrap().flatten();
        entries
            .map(|entry| {
                let name = entry.file_name().into_string().unwrap();
                (name, fs::read_to_string(entry.path()).unwrap())
            })
            .collect()
    }

    fn plugins(&self, name: &str) -> Vec<String> {
        let text = fs::read(self.installation.conf_dir.join(name)).unwrap();
        let list: Value = serde_json::from_slice(&text).unwrap();
        let plugins = list["plugins"].as_array().unwrap().iter();
        plugins.map(|plugin| plugin["type"].as_str().unwrap().to_owned()).collect()
    }

    fn binaries(&self) -> usize {
        fs::read_dir(&self.installation.bin_dir).unwrap().count()
    }
}

#[test]
fn the_node_is_afterwards_as_it_was() {
    let files = [("00-readme.txt", "hello"), ("10-k8s.conflist", LIST), ("99-loopback.conf", SINGLE)];
    let node = Node::with(&files);
    let before = node.configuration();
    for _ in 0..3 {
        node.installation.install().unwrap();
        node.installation.write_rules(&Rules::default()).unwrap();
        assert_eq!(node.plugins("10-k8s.conflist"), ["bridge", "weft-cni"]);
    }
    let mode = fs::metadata(node.installation.bin_dir.join(BINARY)).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o755);
    for _ in 0..2 {
        assert_eq!(node.installation.uninstall(), Vec::<String>::new());
        assert_eq!(node.configuration(), before);
        assert_eq!(node.binaries(), 0);
    }
}

#[test]
fn a_single_plugin_becomes_a_list_and_is_one_again_afterwards() {
    let node = Node::with(&[("00-multus.conf", SINGLE), ("10-k8s.conflist", LIST)]);
    let before = node.configuration();
    node.installation.install().unwrap();
    assert_eq!(node.plugins("00-multus.conflist"), ["multus", "weft-cni"]);
    assert!(!node.configuration().contains_key("00-multus.conf"), "the runtime would take it first");
    node.installation.install().unwrap();
    assert_eq!(node.installation.uninstall(), Vec::<String>::new());
    assert_eq!(node.configuration(), before);
}

#[test]
fn a_list_that_another_plugin_writes_anew_gets_ours_again() {
    let node = Node::with(&[("10-k8s.conflist", LIST)]);
    node.installation.install().unwrap();
    let newer = LIST.replace("bridge", "newer");
    node.write("10-k8s.conflist", &newer);
    node.installation.install().unwrap();
    assert_eq!(node.plugins("10-k8s.conflist"), ["newer", "weft-cni"]);
    assert_eq!(node.installation.uninstall(), Vec::<String>::new());
    assert_eq!(node.configuration(), BTreeMap::from([("10-k8s.conflist".to_owned(), newer)]));
}

#[test]
fn what_others_changed_meanwhile_stays() {
    let node = Node::with(&[("10-k8s.conflist", LIST)]);
    node.installation.install().unwrap();
    let path = node.installation.conf_dir.join("10-k8s.conflist");
    let mut list: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    list["plugins"].as_array_mut().unwrap().push(serde_json::json!({"type":"istio-cni"}));
    fs::write(&path, list.to_string()).unwrap();
    node.installation.install().unwrap();
    assert_eq!(node.installation.uninstall(), Vec::<String>::new());
    assert_eq!(node.plugins("10-k8s.conflist"), ["bridge", "istio-cni"]);
    assert_eq!(node.configuration().len(), 1);
}

#[test]
fn a_list_that_comes_before_takes_over() {
    let node = Node::with(&[("10-k8s.conflist", LIST)]);
    node.installation.install().unwrap();
    node.write("05-cilium.conflist", &LIST.replace("bridge", "cilium-cni"));
    node.installation.install().unwrap();
    assert_eq!(node.plugins("05-cilium.conflist"), ["cilium-cni", "weft-cni"]);
    assert_eq!(node.configuration()["10-k8s.conflist"], LIST);
}

#[test]
fn nothing_to_chain_to_is_said_and_harmless() {
    let node = Node::with(&[("10-broken.conflist", "{"), ("20-empty.conflist", "{\"plugins\":[]}")]);
    let error = node.installation.install().unwrap_err().to_string();
    assert!(error.contains("no CNI configuration yet"), "{error}");
    node.write("30-k8s.conflist", LIST);
    node.installation.install().unwrap();
    assert_eq!(node.plugins("30-k8s.conflist"), ["bridge", "weft-cni"]);
    fs::remove_dir_all(&node.installation.conf_dir).unwrap();
    assert_eq!(node.installation.uninstall(), Vec::<String>::new());
    let missing = Installation { plugin: node.dir.path().join("none"), ..node.installation.clone() };
    assert!(format!("{:#}", missing.install().unwrap_err()).contains("--cni-plugin"));
}
