use super::*;

const POD: &str = "pod2c48913c-b29f-11e7-9350-020968147796";

fn widest_of(mountinfo: &str) -> Option<(String, String)> {
    let text = |path: PathBuf| path.display().to_string();
    widest(mountinfo).map(|(root, mount)| (text(root), text(mount)))
}

#[test]
fn finds_cgroup2_wherever_it_is() {
    let hybrid = "\
25 30 0:23 / /sys rw,nosuid shared:7 - sysfs sysfs rw
31 25 0:27 / /sys/fs/cgroup ro,nosuid shared:9 - tmpfs tmpfs ro,mode=755
32 31 0:28 / /sys/fs/cgroup/unified rw,nosuid shared:10 - cgroup2 cgroup2 rw,nsdelegate
33 31 0:29 / /sys/fs/cgroup/my\\040dir rw shared:11 - cgroup cgroup rw,cpu";
    assert_eq!(widest_of(hybrid), Some(("/".into(), "/sys/fs/cgroup/unified".into())));
    assert_eq!(widest_of("30 25 0:26 / /a\\040b rw - cgroup2 none rw"), Some(("/".into(), "/a b".into())));
    assert_eq!(widest_of("25 30 0:23 / /cgroup2 rw - sysfs cgroup2 rw"), None);
    assert_eq!(widest_of("garbage - cgroup2\n - cgroup2 \n"), None);
}

#[test]
fn the_hosts_hierarchy_wins_over_the_containers_own() {
    let own = format!("40 30 0:26 /kubepods/{POD}/c1 /sys/fs/cgroup ro - cgroup2 cgroup rw");
    let host = "41 30 0:26 / /host/cgroup rw - cgroup2 cgroup rw";
    assert_eq!(widest_of(&format!("{own}\n{host}")).unwrap().1, "/host/cgroup");
    assert_eq!(widest_of(&format!("{host}\n{own}")).unwrap().1, "/host/cgroup");
    // Mounted over the other one.
    let over = "41 40 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup rw";
    assert_eq!(widest_of(&format!("{own}\n{over}")).unwrap(), ("/".into(), "/sys/fs/cgroup".into()));
    // As a process in a cgroup namespace of its own sees it.
    let seen = "40 30 0:26 / /sys/fs/cgroup ro - cgroup2 cgroup rw\n41 30 0:26 /../../.. /host/cgroup rw - cgroup2 cgroup rw";
    assert_eq!(widest_of(seen).unwrap().1, "/host/cgroup");
}

struct Tree(tempfile::TempDir);

impl Tree {
    fn with(directories: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        for directory in directories {
            std::fs::create_dir_all(dir.path().join(directory)).unwrap();
        }
        Self(dir)
    }

    fn cgroups(&self, root: &str, own: &str) -> Cgroups {
        Cgroups { mount: self.0.path().to_owned(), root: root.into(), own: Some(own.into()) }
    }

    fn at(&self, path: &str) -> PathBuf {
        self.0.path().join(path)
    }
}

#[test]
fn an_agent_that_is_no_pod_goes_by_custom() {
    let tree = Tree::with(&[]);
    let cgroups = tree.cgroups("/", "/user.slice/session-1.scope");
    assert_eq!(cgroups.pods(), tree.at(""));
    assert_eq!(cgroups.agent("n1"), tree.at("weft-agent-n1"));
    assert_eq!(cgroups.agent(""), tree.at("weft-agent"));
    std::fs::create_dir(tree.at("kubepods")).unwrap();
    assert_eq!(cgroups.pods(), tree.at("kubepods"));
    std::fs::create_dir(tree.at("kubepods.slice")).unwrap();
    assert_eq!(cgroups.pods(), tree.at("kubepods.slice"));
}

#[test]
fn an_agent_in_a_pod_stays_below_its_limits_and_covers_all_pods() {
    let own = format!("/kubepods/burstable/{POD}/c1");
    let tree = Tree::with(&[&own[1..]]);
    let cgroups = tree.cgroups("/", &own);
    assert_eq!(cgroups.pods(), tree.at("kubepods"));
    assert_eq!(cgroups.agent("n1"), tree.at(&own[1..]).join("weft-agent"));
    assert!(!cgroups.shows_only_own_container());

    let scope = "kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod1.slice/cri-containerd-1.scope";
    let tree = Tree::with(&[scope]);
    let cgroups = tree.cgroups("/", &format!("/{scope}"));
    assert_eq!(cgroups.pods(), tree.at("kubelet.slice/kubelet-kubepods.slice"));
}

#[test]
fn a_node_in_a_cgroup_of_its_own_is_all_there_is() {
    let own = format!("/weft-e2e/n1/kubepods/{POD}/c1");
    let tree = Tree::with(&[&format!("kubepods/{POD}/c1"), "init"]);
    let cgroups = tree.cgroups("/weft-e2e/n1", &own);
    assert_eq!(cgroups.pods(), tree.at("kubepods"));
    assert_eq!(cgroups.agent("n1"), tree.at(&format!("kubepods/{POD}/c1/weft-agent")));
    let probes = |kubelet: &str| cgroups.of_probes(Path::new(kubelet), &cgroups.pods());
    assert_eq!(probes("/weft-e2e/n1/init"), Some(tree.at("init")));
    assert_eq!(probes("/weft-e2e/n2/init"), None, "another node's");
    assert_eq!(probes("/weft-e2e/n1"), None, "everything is in it");
    assert_eq!(probes("/weft-e2e/n1/kubepods"), None, "the pods are in it");
    assert_eq!(probes("/weft-e2e/n1/gone"), None);
}

#[test]
fn a_container_that_sees_nothing_but_itself_is_noticed() {
    let own = format!("/kubepods/{POD}/c1");
    let tree = Tree::with(&[]);
    assert!(tree.cgroups(&own, &own).shows_only_own_container());
    assert!(!tree.cgroups("/", "/").shows_only_own_container());
}

#[test]
fn this_machine_has_cgroups() {
    let table = ProcessTable::new(Path::new("/proc"));
    let cgroups = Cgroups::find(&table).unwrap();
    assert!(cgroups.mount.is_dir());
}
