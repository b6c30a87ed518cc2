//! The README's examples do what the README says.

use weft_netns_tests::{Family, eventually};

use crate::site::{Site, WEB};

const README: &str = include_str!("../../../../README.md");

/// The examples of the section on HTTP: indented blocks that begin with an object.
fn examples() -> Vec<String> {
    let (_, section) = README.split_once("\n## HTTP\n").unwrap();
    let (section, _) = section.split_once("\n## ").unwrap();
    let mut blocks = vec![String::new()];
    for line in section.lines() {
        match (line.strip_prefix("    "), blocks.last_mut()) {
            (Some(code), Some(block)) => block.push_str(&format!("{code}\n")),
            _ => blocks.push(String::new()),
        }
    }
    blocks.retain(|block| block.starts_with("apiVersion:"));
    blocks
}

#[test]
fn the_examples_of_the_readme_work() {
    let Some(site) = Site::new() else { return };
    let examples = examples();
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
