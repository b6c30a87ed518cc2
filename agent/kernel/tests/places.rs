//! What the data path needs of a machine, and what it says where that is not there.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "helpers of tests")]

mod lab;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use lab::{Lab, accept};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use weft_kernel::{Datapath, DatapathConfig};

fn error_of(config: DatapathConfig) -> String {
    let mut error: &dyn std::error::Error = &Datapath::open(config).unwrap_err();
    let mut text = error.to_string();
    while let Some(source) = error.source() {
        text.push_str(&format!(": {source}"));
        error = source;
    }
    text
}

/// bpffs at a directory until the end of the test.
struct Bpffs<'a>(&'a Path);

impl<'a> Bpffs<'a> {
    fn mount(directory: &'a Path, flags: MountFlags) -> Self {
        fs::create_dir_all(directory).unwrap();
        mount("bpf", directory, c"bpf", flags, c"mode=0700").unwrap();
        Self(directory)
    }
}

impl Drop for Bpffs<'_> {
    fn drop(&mut self) {
        let _ = unmount(self.0, UnmountFlags::DETACH);
    }
}

#[test]
fn without_a_bpffs_of_the_host_nothing_is_touched_where_none_may_be_mounted() {
    let lab = Lab::new();
    let config = DatapathConfig { mount_bpffs: false, ..lab.config.clone() };
    let error = error_of(config.clone());
    assert!(error.contains("is not on the bpffs of the host") && error.contains("mount -t bpf"), "{error}");
    assert!(!lab.config.pin_dir.exists() && !lab.config.agent_cgroup.exists());

    // With one it works, and the agent leaves it mounted.
    let mounted = Bpffs::mount(&lab.config.pin_dir, MountFlags::empty());
    let config = DatapathConfig { pin_dir: lab.config.pin_dir.join("weft"), ..config };
    let datapath = Datapath::open(config.clone()).unwrap();
    drop(datapath);
    assert_eq!(Datapath::cleanup(&config, None).unwrap().failures, Vec::<String>::new());
    assert!(!config.pin_dir.exists());
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(mounts.contains(lab.config.pin_dir.to_str().unwrap()), "it was not the agent's to unmount");
    assert_eq!(fs::metadata(&lab.config.pin_dir).unwrap().permissions().mode() & 0o777, 0o700);
    drop(mounted);
}

#[test]
fn a_bpffs_that_cannot_be_written_is_named() {
    let lab = Lab::new();
    let _mounted = Bpffs::mount(&lab.config.pin_dir, MountFlags::RDONLY);
    for mount_bpffs in [false, true] {
        let pin_dir = lab.config.pin_dir.join("weft");
        let error = error_of(DatapathConfig { mount_bpffs, pin_dir: pin_dir.clone(), ..lab.config.clone() });
        assert!(error.contains(&pin_dir.display().to_string()), "{error}");
        assert!(error.contains("Read-only"), "{error}");
    }
}

#[test]
fn a_directory_that_is_no_cgroup_is_named() {
    let lab = Lab::new();
    let nowhere = std::env::temp_dir();
    for config in [
        DatapathConfig { cgroup: nowhere.clone(), ..lab.config.clone() },
        DatapathConfig { probe_cgroup: Some(nowhere.clone()), ..lab.config.clone() },
    ] {
        let error = error_of(config);
        assert!(error.contains("is not a directory of cgroup2") && error.contains("--cgroup"), "{error}");
    }
    let gone = lab.config.cgroup.join("gone");
    let error = error_of(DatapathConfig { cgroup: gone.clone(), ..lab.config.clone() });
    assert!(error.contains(&gone.display().to_string()), "{error}");
    // None of it is in the way of a good configuration.
    let (_datapath, a, _b) = lab.enrolled(&lab.view());
    let _client = lab.a.connect(lab.c.at(80)).unwrap();
    accept(&a.outbound[0]);
}
