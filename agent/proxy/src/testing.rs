//! Requests through one worker of this process, for measurements from outside (feature `testing`). Failures panic:
//! they are failures of the measurement.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use weft_core::resource::virtual_service::{
    DestinationRef, HttpAction, HttpMatch, HttpRule, RouteDestination, TextMatch, VirtualService,
};
use weft_core::resource::{
    AuthorizationPolicy, Change, Match, NamespaceMatch, Operation, PathMatch, PolicyAction, PortProtocol,
    Resource, Rule, Source, StringMatch,
};

use crate::listener::Role;
use crate::testbed::{Bed, connect_from, meta, name, run, service_speaking};

const HOST: &str = "shop.shop.svc.cluster.local";
const REQUEST: &[u8] = b"GET /bench/128 HTTP/1.1\r\nhost: shop\r\nuser-agent: bench\r\naccept: */*\r\n\r\n";
const ANSWER_HEAD: &[u8] =
    b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\nserver: bench\r\ncontent-length: 128\r\n\r\n";
const ANSWER_BODY: [u8; 128] = [b'x'; 128];

/// What stands between the client and the application.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Between {
    /// Nothing: what client and application cost themselves.
    Nothing,
    /// A worker's client's side and server's side, on one node, with metrics.
    Mesh,
    /// The same with a VirtualService of two rules, an ALLOW and a DENY policy.
    Rules,
    /// The same with ten more rules that look at each request, and the access log.
    TenRulesAndLog,
}

/// Sends requests over one HTTP/1.1 connection, one after the other.
pub fn requests(count: usize, between: Between) {
    let meshed = between != Between::Nothing;
    run(async {
        let mut bed = Bed::new("a");
        let (listener, application) = bed.application().await;
        tokio::task::spawn_local(serve(listener));
        let mut client = if meshed {
            let vip = bed.listen(&bed.client, Role::Outbound, (bed.other_ip, 0).into());
            let ips = [application.ip()];
            bed.change(service_speaking(PortProtocol::Http, vip, &ips, application.port()));
            if between != Between::Mesh {
                bed.change(rules());
            }
            if between == Between::TenRulesAndLog {
                bed.change([ten_rules()]);
                bed.log_everything();
            }
            connect_from(bed.client_ip, vip).await.unwrap()
        } else {
            connect_from(bed.client_ip, application).await.unwrap()
        };
        for _ in 0..count {
            ask(&mut client).await;
        }
        let counted = bed
            .metrics()
            .contains(&format!("response_flags=\"-\",connection_security_policy=\"none\"}} {count}\n"));
        assert_eq!(counted, meshed && count > 0, "{}", bed.metrics());
    });
}

async fn ask(client: &mut TcpStream) {
    client.write_all(REQUEST).await.unwrap();
    let mut answer = Vec::with_capacity(1024);
    loop {
        assert!(client.read_buf(&mut answer).await.unwrap() > 0, "the answer broke off");
        if answer.ends_with(&ANSWER_BODY) {
            break;
        }
    }
    assert!(answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
}

/// An application that answers each request with the same 128 bytes.
async fn serve(listener: TcpListener) {
    loop {
        let (mut stream, _) = listener.accept().await.unwrap();
        tokio::task::spawn_local(async move {
            let answer = [ANSWER_HEAD, &ANSWER_BODY].concat();
            let mut request = Vec::with_capacity(4096);
            while stream.read_buf(&mut request).await.unwrap_or(0) > 0 {
                if request.ends_with(b"\r\n\r\n") {
                    request.clear();
                    stream.write_all(&answer).await.unwrap();
                }
            }
        });
    }
}

/// Routing, one ALLOW and one DENY, as the performance goals have it.
fn rules() -> Vec<Change> {
    let destination = DestinationRef { host: HOST.into(), subset: None, port: None };
    let route = RouteDestination { destination, weight: 0, headers: Default::default() };
    let to_shop = HttpRule { action: HttpAction::Route(vec![route]), ..HttpRule::default() };
    let jason = HttpMatch {
        headers: vec![("end-user".into(), TextMatch::Exact("jason".into()))],
        ..HttpMatch::default()
    };
    let routes = Resource::VirtualService(VirtualService {
        meta: meta(name("routes")),
        hosts: vec![HOST.into()],
        gateways: vec!["mesh".into()],
        export_to: Vec::new(),
        http: vec![HttpRule { matches: vec![jason], ..to_shop.clone() }, to_shop],
        tls: Vec::new(),
        tcp: Vec::new(),
    });
    let namespaces = Match { any: [NamespaceMatch("shop".into())].into(), not: Box::default() };
    let from = vec![Source { namespaces, ..Source::default() }];
    let allow = Rule { from, to: vec![paths(["/1k", "/bench"])], ..Rule::default() };
    let deny = Rule { to: vec![paths(["/admin"])], ..Rule::default() };
    let policies = [("allow", PolicyAction::Allow, allow), ("deny", PolicyAction::Deny, deny)];
    let policies = policies.map(|(key, action, rule)| policy(key, action, vec![rule]));
    std::iter::once(Change::Upsert(Box::new(routes))).chain(policies).collect()
}

/// Ten rules of one DENY policy, none of which matches.
fn ten_rules() -> Change {
    let rule = |index| {
        let paths = StringMatch::Suffix(format!("/secret-{index}").into());
        let to = Operation {
            methods: Match { any: [StringMatch::Exact("GET".into())].into(), not: Box::default() },
            paths: Match { any: [PathMatch::Text(paths)].into(), not: Box::default() },
            ..Operation::default()
        };
        Rule { to: vec![to], ..Rule::default() }
    };
    policy("ten", PolicyAction::Deny, (0..10).map(rule).collect())
}

fn policy(key: &str, action: PolicyAction, rules: Vec<Rule>) -> Change {
    Change::Upsert(Box::new(Resource::AuthorizationPolicy(AuthorizationPolicy {
        meta: meta(name(key)),
        selector: Some([("app", "server")].into_iter().collect()),
        targets_gateway: false,
        provider: None,
        action,
        dry_run: false,
        rules,
    })))
}

/// Paths that begin so.
fn paths<const N: usize>(prefixes: [&str; N]) -> Operation {
    let any = prefixes.into_iter().map(|prefix| PathMatch::Text(StringMatch::Prefix(prefix.into())));
    Operation { paths: Match { any: any.collect(), not: Box::default() }, ..Operation::default() }
}
