//! The directory source on real files and real inotify.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "tests")]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Duration;

use tempfile::TempDir;
use weft_control::{DirectoryOptions, Handle, StartError, start};
use weft_core::compile::CompileOptions;
use weft_core::resource::{Kind, NamespacedName};

const PATIENCE: Duration = Duration::from_secs(20);

fn options() -> CompileOptions {
    CompileOptions { node: None, adopt_istio_labels: true, endpoints_from_pods: true }
}

fn run(path: &Path) -> Handle {
    start(DirectoryOptions { paths: vec![path.to_owned()] }, options()).unwrap()
}

/// Waits until the published configuration is as wanted.
fn wait_for(handle: &Handle, wanted: impl Fn(&Handle) -> bool) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let mut revisions = handle.subscribe();
    let waiting = async {
        while !wanted(handle) {
            revisions.changed().await.unwrap();
        }
    };
    let waited = runtime.block_on(async { tokio::time::timeout(PATIENCE, waiting).await });
    assert!(waited.is_ok(), "not within {PATIENCE:?}; now {:#?}", handle.status());
}

fn pod(name: &str, ip: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop}}\nstatus: {{podIP: {ip}}}\n---\n"
    )
}

fn policy(name: &str, action: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: {name}, namespace: shop}}\n\
         spec: {{action: {action}, rules: [{{}}]}}\n---\n"
    )
}

fn ip_of(handle: &Handle, name: &str) -> Option<String> {
    let snapshot = handle.snapshot();
    let workload = snapshot.workload(&NamespacedName::new("shop", name))?;
    workload.ips.first().map(ToString::to_string)
}

fn has_ip(name: &str, ip: &str) -> impl Fn(&Handle) -> bool {
    move |handle| ip_of(handle, name).as_deref() == Some(ip)
}

fn is_gone(name: &str) -> impl Fn(&Handle) -> bool {
    move |handle| ip_of(handle, name).is_none()
}

fn codes(handle: &Handle) -> Vec<&'static str> {
    handle.status().problems.iter().map(|problem| problem.code).collect()
}

/// As `mv` does: complete at once.
fn place(path: &Path, text: &str) {
    let temporary = path.with_extension("new");
    fs::write(&temporary, text).unwrap();
    fs::rename(&temporary, path).unwrap();
}

#[test]
fn the_first_snapshot_is_complete() {
    let dir = TempDir::new().unwrap();
    fs::create_dir_all(dir.path().join("a/b")).unwrap();
    fs::write(dir.path().join("a/b/web.yaml"), pod("web", "10.0.0.1")).unwrap();
    fs::write(dir.path().join("policy.yml"), policy("deny", "DENY")).unwrap();
    fs::write(dir.path().join("notes.txt"), "not configuration").unwrap();
    fs::write(dir.path().join(".hidden.yaml"), pod("hidden", "10.0.0.2")).unwrap();
    fs::write(
        dir.path().join("more.jsonl"),
        "{\"apiVersion\":\"v1\",\"kind\":\"Pod\",\"metadata\":{\"name\":\"line\",\"namespace\":\"shop\"},\
         \"status\":{\"podIP\":\"10.0.0.3\"}}\n",
    )
    .unwrap();
    let handle = run(dir.path());
    assert_eq!(ip_of(&handle, "web").as_deref(), Some("10.0.0.1"));
    assert_eq!(ip_of(&handle, "line").as_deref(), Some("10.0.0.3"));
    assert_eq!(ip_of(&handle, "hidden"), None);
    let status = handle.status();
    assert_eq!((status.source, status.objects.read, status.objects.accepted), ("directory", 3, 3));
    assert_eq!(status.kinds.get(&Kind::Pod), Some(&2));
    assert_eq!(status.kinds.get(&Kind::AuthorizationPolicy), Some(&1));
}

#[test]
fn a_path_that_does_not_exist_is_an_error() {
    let dir = TempDir::new().unwrap();
    let missing = dir.path().join("missing");
    let result = start(DirectoryOptions { paths: vec![missing.clone()] }, options());
    assert!(matches!(result, Err(StartError::Unreadable { path, .. }) if path == missing));
}

#[test]
fn files_are_added_changed_renamed_and_removed() {
    let dir = TempDir::new().unwrap();
    let handle = run(dir.path());
    let file = dir.path().join("pods.yaml");
    fs::write(&file, pod("web", "10.0.0.1") + &pod("api", "10.0.0.2")).unwrap();
    wait_for(&handle, |handle| has_ip("web", "10.0.0.1")(handle) && has_ip("api", "10.0.0.2")(handle));
    fs::write(&file, pod("web", "10.0.0.9") + &pod("api", "10.0.0.2")).unwrap();
    wait_for(&handle, has_ip("web", "10.0.0.9"));
    place(&file, &pod("web", "10.0.0.8"));
    wait_for(&handle, |handle| has_ip("web", "10.0.0.8")(handle) && is_gone("api")(handle));
    fs::rename(&file, dir.path().join("other.yaml")).unwrap();
    fs::write(dir.path().join("api.yaml"), pod("api", "10.0.0.3")).unwrap();
    wait_for(&handle, |handle| has_ip("web", "10.0.0.8")(handle) && has_ip("api", "10.0.0.3")(handle));
    fs::remove_file(dir.path().join("other.yaml")).unwrap();
    wait_for(&handle, is_gone("web"));
    assert_eq!(ip_of(&handle, "api").as_deref(), Some("10.0.0.3"));
    assert_eq!(handle.status().kinds.get(&Kind::Pod), Some(&1));
}

#[test]
fn a_broken_file_keeps_what_it_had_until_it_is_mended() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("pods.yaml");
    fs::write(&file, pod("web", "10.0.0.1") + &pod("api", "10.0.0.2")).unwrap();
    let handle = run(dir.path());
    fs::write(&file, pod("web", "10.0.0.5") + "kind: [Pod\n").unwrap();
    wait_for(&handle, |handle| codes(handle) == ["WEFT0001"]);
    assert_eq!(
        ip_of(&handle, "web").as_deref(),
        Some("10.0.0.5"),
        "the good document of the file is in force"
    );
    assert_eq!(ip_of(&handle, "api").as_deref(), Some("10.0.0.2"), "the broken one may be this");
    let problem = handle.status().problems[0].clone();
    let origin = problem.origin.unwrap();
    assert_eq!((&*origin.file, origin.document, origin.line), ("pods.yaml", 2, 6));
    fs::write(&file, pod("web", "10.0.0.5")).unwrap();
    wait_for(&handle, |handle| codes(handle).is_empty() && is_gone("api")(handle));
}

#[test]
fn an_invalid_object_keeps_its_last_good_version() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("pods.yaml");
    fs::write(&file, pod("web", "10.0.0.1")).unwrap();
    let handle = run(dir.path());
    fs::write(&file, pod("web", "10.0.0.300")).unwrap();
    wait_for(&handle, |handle| codes(handle) == ["WEFT0002"]);
    assert_eq!(ip_of(&handle, "web").as_deref(), Some("10.0.0.1"));
    assert_eq!(handle.status().objects.rejected, 1);
    fs::remove_file(&file).unwrap();
    wait_for(&handle, |handle| codes(handle).is_empty() && is_gone("web")(handle));
}

#[test]
fn directories_come_and_go() {
    let dir = TempDir::new().unwrap();
    let handle = run(dir.path());
    let deep = dir.path().join("team/app");
    for ip in ["10.0.0.1", "10.0.0.2"] {
        fs::create_dir_all(&deep).unwrap();
        fs::write(deep.join("web.yaml"), pod("web", ip)).unwrap();
        wait_for(&handle, has_ip("web", ip));
        fs::remove_dir_all(dir.path().join("team")).unwrap();
        wait_for(&handle, is_gone("web"));
    }
    // One that is moved in is complete at once, and watched from then on.
    let elsewhere = TempDir::new_in(dir.path().parent().unwrap()).unwrap();
    fs::create_dir(elsewhere.path().join("sub")).unwrap();
    fs::write(elsewhere.path().join("sub/web.yaml"), pod("web", "10.0.0.3")).unwrap();
    fs::rename(elsewhere.path().join("sub"), dir.path().join("moved")).unwrap();
    wait_for(&handle, has_ip("web", "10.0.0.3"));
    fs::write(dir.path().join("moved/web.yaml"), pod("web", "10.0.0.4")).unwrap();
    wait_for(&handle, has_ip("web", "10.0.0.4"));
    fs::rename(dir.path().join("moved"), elsewhere.path().join("back")).unwrap();
    wait_for(&handle, is_gone("web"));
}

#[test]
fn a_configured_path_that_vanishes_keeps_its_objects() {
    let parent = TempDir::new().unwrap();
    let dir = parent.path().join("config");
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("web.yaml"), pod("web", "10.0.0.1")).unwrap();
    let handle = run(&dir);
    fs::rename(&dir, parent.path().join("away")).unwrap();
    wait_for(&handle, |handle| codes(handle) == ["WEFT0009"]);
    assert_eq!(ip_of(&handle, "web").as_deref(), Some("10.0.0.1"));
    fs::write(parent.path().join("away/web.yaml"), pod("web", "10.0.0.2")).unwrap();
    fs::rename(parent.path().join("away"), &dir).unwrap();
    wait_for(&handle, |handle| codes(handle).is_empty() && has_ip("web", "10.0.0.2")(handle));
    fs::write(dir.join("web.yaml"), pod("web", "10.0.0.3")).unwrap();
    wait_for(&handle, has_ip("web", "10.0.0.3"));
}

#[test]
fn a_single_file_can_be_replaced() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("only.yaml");
    fs::write(&file, pod("web", "10.0.0.1")).unwrap();
    fs::write(dir.path().join("other.yaml"), pod("other", "10.0.0.7")).unwrap();
    let handle = run(&file);
    assert_eq!(ip_of(&handle, "other"), None);
    place(&file, &pod("web", "10.0.0.2"));
    wait_for(&handle, has_ip("web", "10.0.0.2"));
    fs::write(&file, pod("web", "10.0.0.3")).unwrap();
    wait_for(&handle, has_ip("web", "10.0.0.3"));
}

/// As the kubelet mounts a ConfigMap: files are links through `..data`, which is swapped by a rename.
#[test]
fn a_mounted_config_map_is_swapped_atomically() {
    let dir = TempDir::new().unwrap();
    let version = |name: &str, ip: &str| {
        fs::create_dir(dir.path().join(name)).unwrap();
        fs::write(dir.path().join(name).join("web.yaml"), pod("web", ip)).unwrap();
    };
    version("..2024_1", "10.0.0.1");
    symlink("..2024_1", dir.path().join("..data")).unwrap();
    symlink("..data/web.yaml", dir.path().join("web.yaml")).unwrap();
    let handle = run(dir.path());
    assert_eq!(ip_of(&handle, "web").as_deref(), Some("10.0.0.1"));
    version("..2024_2", "10.0.0.2");
    symlink("..2024_2", dir.path().join("..data_tmp")).unwrap();
    fs::rename(dir.path().join("..data_tmp"), dir.path().join("..data")).unwrap();
    fs::remove_dir_all(dir.path().join("..2024_1")).unwrap();
    wait_for(&handle, has_ip("web", "10.0.0.2"));
    assert_eq!(handle.status().objects.read, 1);
}

#[test]
fn a_link_follows_its_target() {
    let (dir, outside) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let target = outside.path().join("target.yaml");
    fs::write(&target, pod("web", "10.0.0.1")).unwrap();
    let handle = run(dir.path());
    symlink(&target, dir.path().join("web.yaml")).unwrap();
    wait_for(&handle, has_ip("web", "10.0.0.1"));
    fs::write(&target, pod("web", "10.0.0.2")).unwrap();
    wait_for(&handle, has_ip("web", "10.0.0.2"));
    place(&target, &pod("web", "10.0.0.3"));
    wait_for(&handle, has_ip("web", "10.0.0.3"));
}

#[test]
fn of_two_equal_objects_the_first_file_wins() {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("b.yaml"), pod("web", "10.0.0.2")).unwrap();
    let handle = run(dir.path());
    assert_eq!(ip_of(&handle, "web").as_deref(), Some("10.0.0.2"));
    // A file that comes first takes the object over …
    fs::write(dir.path().join("a.yaml"), pod("other", "10.0.0.9") + &pod("web", "10.0.0.1")).unwrap();
    wait_for(&handle, has_ip("web", "10.0.0.1"));
    assert_eq!(codes(&handle), ["WEFT0005"]);
    let problem = handle.status().problems[0].clone();
    assert_eq!(problem.origin.unwrap().file.as_ref(), "b.yaml");
    assert!(problem.message.contains("a.yaml, document 2, line 6"), "{}", problem.message);
    // … what the other says meanwhile does not count …
    fs::write(dir.path().join("b.yaml"), pod("web", "10.0.0.3") + &pod("mark", "10.0.0.8")).unwrap();
    wait_for(&handle, has_ip("mark", "10.0.0.8"));
    assert_eq!(ip_of(&handle, "web").as_deref(), Some("10.0.0.1"));
    // … until the first one lets go of it.
    fs::write(dir.path().join("a.yaml"), pod("other", "10.0.0.9")).unwrap();
    wait_for(&handle, has_ip("web", "10.0.0.3"));
    assert!(codes(&handle).is_empty());
    assert_eq!(handle.status().kinds.get(&Kind::Pod), Some(&3));
}

#[test]
fn of_two_equal_objects_in_one_file_the_first_wins() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("a.yaml");
    let (first, second) = (pod("web", "10.0.0.1"), pod("web", "10.0.0.2"));
    fs::write(&file, first.clone() + &second).unwrap();
    let handle = run(dir.path());
    assert_eq!(ip_of(&handle, "web").as_deref(), Some("10.0.0.1"));
    assert_eq!(codes(&handle), ["WEFT0005"]);
    fs::write(&file, second.clone() + &first).unwrap();
    wait_for(&handle, has_ip("web", "10.0.0.2"));
    assert_eq!(codes(&handle), ["WEFT0005"]);
    fs::write(&file, first).unwrap();
    wait_for(&handle, has_ip("web", "10.0.0.1"));
    assert!(codes(&handle).is_empty());
}

#[test]
fn lines_of_json_are_compared_by_their_text() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("pods.jsonl");
    let line = |name: &str, ip: &str| {
        format!(
            "{{\"apiVersion\":\"v1\",\"kind\":\"Pod\",\"metadata\":{{\"name\":\"{name}\",\"namespace\":\"shop\"}},\
             \"status\":{{\"podIP\":\"{ip}\"}}}}\n"
        )
    };
    fs::write(&file, line("a", "10.0.0.1") + &line("b", "10.0.0.2") + &line("c", "10.0.0.3")).unwrap();
    let handle = run(dir.path());
    fs::write(&file, line("new", "10.0.0.9") + &line("c", "10.0.0.3") + &line("a", "10.0.0.4")).unwrap();
    wait_for(&handle, |handle| has_ip("new", "10.0.0.9")(handle) && is_gone("b")(handle));
    assert_eq!(ip_of(&handle, "a").as_deref(), Some("10.0.0.4"));
    assert_eq!(ip_of(&handle, "c").as_deref(), Some("10.0.0.3"));
    fs::write(&file, line("c", "10.0.0.5")).unwrap();
    wait_for(&handle, |handle| {
        has_ip("c", "10.0.0.5")(handle) && is_gone("a")(handle) && is_gone("new")(handle)
    });
}

#[test]
fn links_of_all_kinds_are_followed_or_passed_over() {
    let dir = TempDir::new().unwrap();
    let outside = TempDir::new_in(dir.path().parent().unwrap()).unwrap();
    symlink("loop.yaml", dir.path().join("loop.yaml")).unwrap();
    symlink(".", dir.path().join("circle")).unwrap();
    let (target, hard) = (outside.path().join("web.yaml"), dir.path().join("web.yaml"));
    fs::write(&target, pod("web", "10.0.0.1")).unwrap();
    let handle = run(dir.path());
    fs::hard_link(&target, &hard).unwrap();
    wait_for(&handle, has_ip("web", "10.0.0.1"));
    fs::write(&hard, pod("web", "10.0.0.2")).unwrap();
    wait_for(&handle, has_ip("web", "10.0.0.2"));
    assert!(codes(&handle).is_empty(), "a link that leads nowhere is no configuration");
}

#[test]
fn a_path_that_is_configured_twice_is_read_once() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("web.yaml");
    fs::write(&file, pod("web", "10.0.0.1")).unwrap();
    for paths in [vec![dir.path().to_owned(), file.clone()], vec![file.clone(), dir.path().to_owned()]] {
        fs::write(&file, pod("web", "10.0.0.1")).unwrap();
        let handle = start(DirectoryOptions { paths }, options()).unwrap();
        assert_eq!(handle.status().objects.read, 1);
        fs::write(&file, pod("web", "10.0.0.2")).unwrap();
        wait_for(&handle, has_ip("web", "10.0.0.2"));
        assert!(codes(&handle).is_empty());
    }
}

#[test]
fn offline_loading_tells_of_everything() {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("a.yaml"), pod("web", "10.0.0.1") + "a: 1\n").unwrap();
    fs::write(dir.path().join("odd.txt"), pod("api", "10.0.0.2")).unwrap();
    let paths = [dir.path().join("a.yaml"), dir.path().join("odd.txt")];
    let loaded = weft_control::load(&paths, options()).unwrap();
    assert_eq!((loaded.objects.read, loaded.objects.accepted, loaded.objects.rejected), (3, 2, 1));
    assert!(loaded.snapshot.workload(&NamespacedName::new("shop", "api")).is_some());
    assert!(loaded.problems.iter().any(|problem| problem.code == "WEFT0003"));
    assert!(weft_control::load(&[dir.path().join("none")], options()).is_err());
}

/// A burst of changes ends in the state that the files have, whatever was seen in between.
#[test]
fn a_burst_of_changes_ends_in_the_last_state() {
    let dir = TempDir::new().unwrap();
    let handle = run(dir.path());
    let name = |number: usize| format!("pod-{}", number % 40);
    for number in 0..400_usize {
        let file = dir.path().join(format!("{}.yaml", number % 40));
        let text = pod(&name(number), &format!("10.0.{}.{}", number / 200, number % 200));
        match number % 3 {
            0 => fs::write(&file, text).unwrap(),
            1 => place(&file, &text),
            _ => {
                fs::write(&file, "").unwrap();
                drop(fs::remove_file(&file));
                fs::write(&file, text).unwrap();
            }
        }
    }
    wait_for(&handle, |handle| {
        (360..400).all(|number| has_ip(&name(number), &format!("10.0.1.{}", number % 200))(handle))
            && handle.status().kinds.get(&Kind::Pod) == Some(&40)
    });
    assert!(codes(&handle).is_empty());
}
