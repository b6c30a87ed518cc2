//! The story's HTTP chapters: three versions of `reviews`, and `ratings`, which does not always do well.

use anyhow::{Result, bail};
use serde_json::Value;
use weft_lab::{jwt, poll_until};

use super::report::{Report, Seen};
use super::steps::{PATIENCE, log_line};
use super::world::{RATINGS_VIPS, REVIEWS_VIPS, WEB, World};

const CANARY: &str = include_str!("story/http/canary.yaml");
const BY_USER: &str = include_str!("story/http/by-user.yaml");
const MIRROR: &str = include_str!("story/http/mirror.yaml");
const TIMEOUT: &str = include_str!("story/http/timeout.yaml");
const ABORT: &str = include_str!("story/http/abort.yaml");
const RETRIES: &str = include_str!("story/http/retries.yaml");
const CIRCUIT_BREAKER: &str = include_str!("story/http/circuit-breaker.yaml");
const TOKENS: &str = include_str!("story/http/tokens.yaml");
const NO_DELETES: &str = include_str!("story/http/no-deletes.yaml");

/// Plays the HTTP chapters.
pub(crate) fn play(world: &World, report: &mut Report) {
    report.chapter("HTTP: which version answers");
    versions(world, report);
    report.chapter("HTTP: when an application does badly");
    failures(world, report);
    report.chapter("HTTP: who may do what");
    security(world, report);
    report.chapter("HTTP: what is known about requests");
    telemetry(world, report);
}

/// What `lab-peer http` found out.
struct Answers(Value);

impl Answers {
    /// Answers whose `what` (`statuses`, `versions`) is `key`.
    fn count(&self, what: &str, key: &str) -> u64 {
        self.0.get(what).and_then(|counts| counts.get(key)).and_then(Value::as_u64).unwrap_or(0)
    }

    fn version(&self, version: &str) -> u64 {
        self.count("versions", version)
    }

    fn status(&self, status: &str) -> u64 {
        self.count("statuses", status)
    }

    /// The last answer's body, where it is text.
    fn text(&self) -> &str {
        self.0.pointer("/last/body").and_then(Value::as_str).unwrap_or_default()
    }

    fn describe(&self) -> String {
        let part = |name: &str| self.0.get(name).map(ToString::to_string).unwrap_or_default();
        let ms = self.0.get("ms").and_then(Value::as_f64).unwrap_or(0.0);
        let text = if self.text().is_empty() { String::new() } else { format!(", {:?}", self.text()) };
        let errors =
            if part("errors") == "{}" { String::new() } else { format!(", errors {}", part("errors")) };
        format!("statuses {}, versions {}{text}{errors}, {ms:.0} ms", part("statuses"), part("versions"))
    }
}

/// `books/productpage` asks a Service.
fn ask(world: &World, (service, vip): (&str, &str), args: &[&str]) -> Result<Answers> {
    let (address, host) = (format!("{vip}:{WEB}"), format!("{service}:{WEB}"));
    let own = ["http", address.as_str(), "--host", &host];
    Ok(Answers(world.pod("books/productpage")?.peer(&[&own, args].concat())?))
}

fn reviews(world: &World, args: &[&str]) -> Result<Answers> {
    ask(world, ("reviews", REVIEWS_VIPS[0]), args)
}

fn ratings(world: &World, args: &[&str]) -> Result<Answers> {
    ask(world, ("ratings", RATINGS_VIPS[0]), args)
}

/// Asks until the answer is as wanted: a change takes its time to arrive.
fn until(ask: impl Fn() -> Result<Answers>, wanted: impl Fn(&Answers) -> bool) -> Result<Seen> {
    poll_until(PATIENCE, || {
        let answers = ask()?;
        if wanted(&answers) { Ok(Seen::new(true, answers.describe())) } else { bail!(answers.describe()) }
    })
}

fn versions(world: &World, report: &mut Report) {
    report.step("no rules: reviews has three versions", "all three answer", || {
        let all = |it: &Answers| ["v1", "v2", "v3"].iter().all(|version| it.version(version) > 0);
        until(|| reviews(world, &["--count", "60"]), all)
    });
    report.step("canary: 80 % v1, 20 % v2, 1000 requests", "750 to 850 from v1, the others from v2", || {
        world.lab.config().write("reviews.yaml", CANARY)?;
        until(|| reviews(world, &["--count", "20"]), |it| it.version("v3") == 0 && it.version("v2") < 12)?;
        let many = reviews(world, &["--count", "1000", "--concurrency", "4"])?;
        let good =
            (750..=850).contains(&many.version("v1")) && many.version("v1") + many.version("v2") == 1000;
        Ok(Seen::new(good, many.describe()))
    });
    report.step("the same over IPv6", "750 to 850 from v1", || {
        let many = ask(world, ("reviews", REVIEWS_VIPS[1]), &["--count", "1000", "--concurrency", "4"])?;
        Ok(Seen::new((750..=850).contains(&many.version("v1")), many.describe()))
    });
    let jason = ["--header", "end-user: jason", "--count", "20"];
    report.step("by user: end-user jason gets v2", "20 of 20", || {
        world.lab.config().write("reviews.yaml", BY_USER)?;
        until(|| reviews(world, &jason), |it| it.version("v2") == 20)
    });
    report.step("a cookie vip=true gets v3, everybody else v1", "20 of 20 each", || {
        let vip = reviews(world, &["--header", "cookie: vip=true", "--count", "20"])?;
        let others = reviews(world, &["--count", "20"])?;
        let good = vip.version("v3") == 20 && others.version("v1") == 20;
        Ok(Seen::new(good, format!("{}; {}", vip.describe(), others.describe())))
    });
    report.step("mirror: v1 answers, v3 sees everything too", "20 answers of v1, and v3 has seen 20", || {
        world.lab.config().write("reviews.yaml", MIRROR)?;
        mirrored(world)
    });
}

/// How many requests for a path an application has seen, as it says itself inside its pod.
fn seen_by(world: &World, pod: &str, path: &str) -> Result<u64> {
    let address = format!("127.0.0.1:{WEB}");
    let answer = world.pod(pod)?.peer(&["http", &address, "--path", "/seen"])?;
    Ok(answer.pointer("/last/body/paths").and_then(|it| it.get(path)).and_then(Value::as_u64).unwrap_or(0))
}

fn mirrored(world: &World) -> Result<Seen> {
    until(
        || reviews(world, &["--path", "/before"]),
        |it| {
            it.version("v1") == 1 && seen_by(world, "books/reviews-v3", "/before").is_ok_and(|seen| seen > 0)
        },
    )?;
    let answers = reviews(world, &["--path", "/mirrored", "--count", "20"])?;
    let seen = poll_until(PATIENCE, || match seen_by(world, "books/reviews-v3", "/mirrored")? {
        20 => Ok(20),
        other => bail!("v3 has seen {other}"),
    })?;
    Ok(Seen::new(answers.version("v1") == 20, format!("{}; v3 has seen {seen}", answers.describe())))
}

fn failures(world: &World, report: &mut Report) {
    let slow = ["--path", "/ratings/0?delay_ms=7000"];
    report.step("ratings takes 7 s; the rule says timeout 0.5 s", "504 upstream request timeout", || {
        world.lab.config().write("ratings.yaml", TIMEOUT)?;
        until(|| ratings(world, &slow), |it| it.status("504") == 1 && it.text() == "upstream request timeout")
    });
    report.step("fault: every request is aborted with 503", "503 fault filter abort", || {
        world.lab.config().write("ratings.yaml", ABORT)?;
        until(
            || ratings(world, &["--count", "5"]),
            |it| it.status("503") == 5 && it.text() == "fault filter abort",
        )
    });
    report.step(
        "retries: an application that fails twice",
        "200, and the application was asked 3 times",
        || {
            world.lab.config().write("ratings.yaml", RETRIES)?;
            until(|| ratings(world, &["--path", "/warm"]), |it| it.status("200") == 1)?;
            let answers = ratings(world, &["--path", "/flaky?fail=2&key=demo"])?;
            let seen = seen_by(world, "books/ratings", "/flaky")?;
            let good = answers.status("200") == 1 && seen == 3;
            Ok(Seen::new(good, format!("{}; asked {seen} times", answers.describe())))
        },
    );
    report.step(
        "circuit breaker: one connection, one waits; 10 clients",
        "some are answered, the others get 503 at once, and each 503 is counted",
        || circuit_breaker(world),
    );
}

fn circuit_breaker(world: &World) -> Result<Seen> {
    let name = "envoy_cluster_upstream_rq_pending_overflow";
    let labels = [("cluster_name", "outbound|9080||ratings.books.svc.cluster.local")];
    let crowd = ["--path", "/ratings/0?delay_ms=50", "--count", "100", "--concurrency", "10"];
    let revision = || Ok::<_, anyhow::Error>(world.agent("a")?.metrics()?.value("weft_config_revision", &[]));
    let earlier = revision()?;
    world.lab.config().write("circuit-breaker.yaml", CIRCUIT_BREAKER)?;
    // Connections that a crowd has opened before there is a limit would be used further.
    poll_until(PATIENCE, || if revision()? > earlier { Ok(()) } else { bail!("the limit is not in force") })?;
    until(|| ratings(world, &crowd), |it| it.status("503") > 0)?;
    let before = world.agent("a")?.metrics()?.value(name, &labels);
    let answers = ratings(world, &crowd)?;
    let counted = world.agent("a")?.metrics()?.value(name, &labels) - before;
    world.lab.config().remove("circuit-breaker.yaml")?;
    until(|| ratings(world, &crowd), |it| it.status("200") == 100)?;
    let (good, refused) = (answers.status("200"), answers.status("503"));
    let ok = good > 0 && refused > 0 && counted == refused as f64;
    Ok(Seen::new(ok, format!("{}; {name} grew by {counted}", answers.describe())))
}

fn security(world: &World, report: &mut Report) {
    let with = |token: &str, path: &str| {
        ratings(world, &["--header", &format!("authorization: Bearer {token}"), "--path", path])
    };
    report.step("RequestAuthentication: a forged token", "401 Jwt verification fails", || {
        world.lab.config().write("tokens.yaml", &TOKENS.replace("JWKS", jwt::JWKS))?;
        until(|| with(jwt::FORGED, "/"), |it| it.status("401") == 1 && it.text() == "Jwt verification fails")
    });
    let path = "/admin/stars";
    for (who, token, expect, status) in [
        ("alice, of the admins", Some(jwt::ALICE), "200", "200"),
        ("bob, who is none", Some(jwt::BOB), "403 RBAC: access denied", "403"),
        ("nobody in particular", None, "403 RBAC: access denied", "403"),
    ] {
        report.step(&format!("GET {path} by {who}"), expect, || {
            let ask = || token.map_or_else(|| ratings(world, &["--path", path]), |token| with(token, path));
            until(ask, |it| it.status(status) == 1)
        });
    }
    let delete = ["--method", "DELETE", "--path", "/ratings/7"];
    report.step("AuthorizationPolicy no-deletes: DELETE /ratings/7", "403 RBAC: access denied", || {
        world.lab.config().write("no-deletes.yaml", NO_DELETES)?;
        until(|| ratings(world, &delete), |it| it.status("403") == 1 && it.text() == "RBAC: access denied")
    });
    report.step("GET /ratings/7", "200: only deletes are denied", || {
        until(|| ratings(world, &["--path", "/ratings/7"]), |it| it.status("200") == 1)
    });
}

fn telemetry(world: &World, report: &mut Report) {
    let rule = "ns[books]-policy[no-deletes]-rule[0]";
    report.step(
        "access log of the server's node",
        "the denied request, with the rule that denied it",
        || {
            let line = log_line(world.agent("b")?, |line| {
                line.contains(&format!("rbac_access_denied_matched_policy[{rule}]"))
                    && line.contains("DELETE")
            })?;
            Ok(Seen::new(true, line))
        },
    );
    report.step("access log of the client's node", "a request with its route and endpoint", || {
        let line = log_line(world.agent("a")?, |line| {
            line.contains("outbound|9080|v1|reviews.books") && line.contains("via_upstream")
        })?;
        Ok(Seen::new(true, line))
    });
    for (node, reporter) in [("a", "source"), ("b", "destination")] {
        let name = format!("istio_requests_total of node {node}, reporter {reporter}");
        report.step(&name, "200, 401 and 403 of ratings, asked by productpage", || {
            requests_total(world, node, reporter)
        });
    }
}

fn requests_total(world: &World, node: &str, reporter: &str) -> Result<Seen> {
    let count = |code: &str| -> Result<f64> {
        let labels = [
            ("reporter", reporter),
            ("response_code", code),
            ("source_principal", "spiffe://cluster.local/ns/books/sa/productpage"),
            ("destination_service", "ratings.books.svc.cluster.local"),
        ];
        world.agent(node)?.wait_for_metric("istio_requests_total", &labels, 1.0)
    };
    let [good, unauthorised, denied] = [count("200")?, count("401")?, count("403")?];
    Ok(Seen::new(true, format!("{good} of 200, {unauthorised} of 401, {denied} of 403")))
}
