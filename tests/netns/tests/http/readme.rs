//! The README's examples do what the README says.

use weft_lab::{Lab, LabSpec, PodSpec, Process, output};
use weft_netns_tests::{Family, eventually, privileged};

use crate::site::{Site, WEB};

const README: &str = include_str!("../../../../README.md");

/// The indented blocks of a section.
fn blocks(section: &str) -> Vec<String> {
    let (_, section) = README.split_once(&format!("\n## {section}\n")).unwrap();
    let (section, _) = section.split_once("\n## ").unwrap();
    let mut blocks = vec![String::new()];
    for line in section.lines() {
        match (line.strip_prefix("    "), blocks.last_mut()) {
            (Some(code), Some(block)) => block.push_str(&format!("{code}\n")),
            _ => blocks.push(String::new()),
        }
    }
    blocks.retain(|block| !block.is_empty());
    blocks
}

/// The section's only pod, with a namespace and addresses that exist, and its commands, with directories of the lab and
/// whatever else keeps them away from this machine.
#[test]
fn a_directory_runs_as_the_readme_says() {
    if !privileged() {
        return;
    }
    let lab = Lab::new(&LabSpec::new().node("a").pod(PodSpec::new("a", "shop", "cart"))).unwrap();
    let (node, pod, dir) = (lab.node("a").unwrap(), lab.pod("shop/cart").unwrap(), lab.dir());
    let blocks = blocks("Run it");
    let [objects, commands] = blocks.as_slice() else { panic!("the README has other blocks") };
    let mesh = dir.join("mesh");
    std::fs::create_dir(&mesh).unwrap();
    let objects = objects
        .replace("/run/netns/cart", &pod.netns().display().to_string())
        .replace("10.244.0.10", &pod.ipv4().to_string())
        .replace("fd00::10", &pod.ipv6().to_string());
    std::fs::write(mesh.join("mesh.yaml"), &objects).unwrap();
    let here = |word: &str| match word {
        "mesh/" => mesh.display().to_string(),
        word if word.starts_with('/') => format!("{}{word}", dir.display()),
        word => word.to_owned(),
    };
    let admin = dir.join("admin.sock");
    let apart = [
        ("--pin-dir", node.dir().join("bpf")),
        ("--cgroup", node.kubepods()),
        ("--agent-cgroup", node.cgroup().join("agent")),
        ("--state-dir", dir.join("state")),
        ("--admin-socket", admin.clone()),
    ];
    let apart = apart.map(|(flag, path)| [flag.to_owned(), path.display().to_string()]).concat();
    let start = |name: &str, further: &[String]| {
        let line = commands.lines().find_map(|line| line.strip_prefix(&format!("weft {name} "))).unwrap();
        let args: Vec<String> = line.split_whitespace().map(here).chain(further.iter().cloned()).collect();
        let args: Vec<&str> = [name].into_iter().chain(args.iter().map(String::as_str)).collect();
        Process::spawn(&node.place(), name, &lab.weft(), &args).unwrap()
    };
    let _controller = start("controller", &[]);
    let _agent = start("agent", &apart);
    let (weft, admin) = (lab.weft(), admin.display().to_string());
    let is_enrolled = |expected: bool| {
        let answer = output(weft.to_str().unwrap(), &["status", "--socket", &admin, "-o", "json"]);
        let status: serde_json::Value = serde_json::from_str(&answer.unwrap_or_default()).unwrap_or_default();
        status["node"] == "a" && (status["workloads"][0]["state"] == "enrolled") == expected
    };
    eventually("the pod is enrolled", || is_enrolled(true));
    let without = objects.replace("weft.dev/mesh: enabled", "weft.dev/mesh: disabled");
    std::fs::write(mesh.join("mesh.yaml"), without).unwrap();
    eventually("the pod is out of the mesh", || is_enrolled(false));
}

#[test]
fn the_examples_of_the_readme_work() {
    let Some(site) = Site::new() else { return };
    let mut examples = blocks("HTTP");
    examples.retain(|block| block.starts_with("apiVersion:"));
    let [canary, limits, deletes] = examples.as_slice() else { panic!("the README has other examples") };
    site.mesh.write("canary.yaml", canary);
    let tester = ["--header", "end-user: tester", "--count", "20"];
    site.ask_until("testers get v2", "reviews", &tester, |answer| answer.of_version("v2") == 20);
    let many = site.ask("reviews", &["--count", "500", "--concurrency", "2"]);
    // More than 6 sigma of a binomial distribution with n = 500 and p = 0.8.
    assert!((340..=460).contains(&many.of_version("v1")), "{}", many.0);
    // On a machine that stands still for two seconds the rule's time-out cuts a request.
    let cut = many.with_status(504);
    assert!(cut <= 10, "{}", many.0);
    assert_eq!(many.of_version("v1") + many.of_version("v2") + cut, 500, "{}", many.0);
    assert_eq!(site.ask("reviews", &["--path", "/?delay_ms=5000"]).status(), 504);
    assert!(site.ask("reviews", &["--path", "/?fail=1&key=readme"]).all_good());

    site.settled(|| site.mesh.write("limits.yaml", limits));
    let crowd = ["--path", "/?delay_ms=50", "--count", "40", "--concurrency", "8"];
    site.ask_until("a crowd is refused", "far", &crowd, |answer| answer.with_status(503) > 0);

    site.mesh.write("deletes.yaml", deletes);
    let delete = ["--method", "DELETE"];
    site.ask_until("deletes are denied", "near", &delete, |answer| answer.status() == 403);
    assert!(site.ask("near", &[]).all_good());
    eventually("one account may", || site.ask_from("other", Family::V4, ("near", WEB), &delete).all_good());
}
