use std::sync::LazyLock;

use super::*;
use crate::setup::find;

/// The renderer, unless there is no Go: then the test is skipped, and says so.
fn renderer(test: &str) -> Option<PathBuf> {
    /// Built by one at a time, while nobody runs it.
    static BUILT: LazyLock<PathBuf> = LazyLock::new(|| build_renderer().unwrap());
    let has_go = find("go").is_some() || Path::new("/usr/local/go/bin/go").is_file();
    if !has_go && std::env::var_os("CI").is_none() {
        println!("SKIPPED {test}: Go is missing; apt-get install golang-go, or https://go.dev/dl");
        return None;
    }
    Some(BUILT.clone())
}

fn with(renderer: &Path, flags: &[&str]) -> String {
    render(renderer, flags).unwrap()
}

#[test]
fn the_files_are_what_the_chart_renders() {
    let Some(renderer) = renderer("the_files_are_what_the_chart_renders") else { return };
    for manifest in MANIFESTS {
        let written = fs::read_to_string(root().unwrap().join(manifest.path)).unwrap();
        assert!(
            written == manifest.text(&renderer).unwrap(),
            "{} is not what the chart renders: run `cargo xtask manifests`",
            manifest.path
        );
    }
}

#[test]
fn the_chart_has_no_mistakes() {
    let Some(renderer) = renderer("the_chart_has_no_mistakes") else { return };
    let mut lint = Command::new(renderer);
    let out = lint.args(["lint", "deploy/helm/weft"]).current_dir(root().unwrap()).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stdout));
}

#[test]
fn every_value_has_an_effect() {
    let Some(renderer) = renderer("every_value_has_an_effect") else { return };
    // Each line: flags, and what the result has in it.
    let digest = format!("sha256:{}", "a".repeat(64));
    let image = format!("image: docker.io/weft/weft@{digest}");
    let digest = format!("image.digest={digest}");
    let cases: &[(&[&str], &str)] = &[
        (&["image.repository=r.io/w", "image.tag=v7"], "image: r.io/w:v7"),
        (&[&digest, "image.tag=v7"], &image),
        (&["image.pullPolicy=Never"], "imagePullPolicy: Never"),
        (&["imagePullSecrets[0].name=pull"], "imagePullSecrets:\n  - name: pull"),
        (&["platform=gke"], "kind: ResourceQuota"),
        (&["platform=openshift"], "system:openshift:scc:privileged"),
        (&["platform=openshift"], "type: spc_t"),
        (&["platform=openshift", "agent.seLinuxOptions.type=own_t"], "type: own_t"),
        (&["platform=bottlerocket"], "type: super_t"),
        (&["platform=gke", "cni.binDir=/my/bin"], "path: /my/bin"),
        (&["cni.confDir=/my/conf"], "path: /my/conf"),
        (&["cni.netnsDir=/my/netns"], "path: /my/netns"),
        (&["trustDomain=corp.example"], "trustDomain: corp.example"),
        (&["rootNamespace=policies"], "rootNamespace: policies"),
        (&["meshConfig.accessLogFile=/dev/stdout"], "accessLogFile: /dev/stdout"),
        (&["adoptIstioLabels=true"], "--adopt-istio-labels=true"),
        (&["logLevel=debug"], "--log-level=debug"),
        (&["logAsJson=true"], "--log-format=json"),
        (
            &["ca.address=https://istiod.istio-system.svc:15012"],
            "--ca-address=https://istiod.istio-system.svc:15012",
        ),
        (&["ca.audience=istio-ca"], "audience: istio-ca"),
        (&["ca.serverName=istiod"], "--ca-server-name=istiod"),
        (&["ca.clusterId=east"], "--ca-cluster-id=east"),
        (&["ca.rootConfigMap.name=istio-ca-root-cert"], "name: istio-ca-root-cert"),
        (&["agent.resources.limits.memory=2Gi"], "memory: 2Gi"),
        (&["agent.tolerations=null"], "serviceAccountName: weft-agent"),
        (&["agent.nodeSelector.pool=mesh"], "pool: mesh"),
        (&["agent.affinity.nodeAffinity.x=y"], "nodeAffinity:"),
        (&["agent.priorityClassName=mine"], "priorityClassName: mine"),
        (&["agent.updateStrategy.rollingUpdate.maxUnavailable=10%"], "maxUnavailable: 10%"),
        (&["agent.updateStrategy.rollingUpdate.maxSurge=2"], "maxSurge: 2"),
        (&["agent.terminationGracePeriodSeconds=60"], "terminationGracePeriodSeconds: 65"),
        (&["agent.holder.patienceSeconds=40"], "--patience-seconds=40"),
        (&["agent.holder.resources.limits.memory=99Mi"], "memory: 99Mi"),
        (&["agent.podAnnotations.note=agent"], "note: agent"),
        (&["agent.podLabels.team=net"], "team: net"),
        (&["agent.env[0].name=RUST_BACKTRACE,agent.env[0].value=full"], "name: RUST_BACKTRACE"),
        (&["agent.extraArgs[0]=--workers=2"], "- --workers=2"),
        (&["agent.volumes[0].name=mine"], "- name: mine"),
        (&["agent.volumeMounts[0].name=mount"], "- name: mount"),
        (&["agent.seLinuxOptions.type=spc_t"], "type: spc_t"),
        (&["controller.replicas=3"], "replicas: 3"),
        (&["controller.affinity.podAffinity.x=y"], "podAffinity:"),
        (&["controller.podLabels.team=sec"], "team: sec"),
        (&["controller.podAnnotations.note=controller"], "note: controller"),
        (&["controller.env[0].name=RUST_LOG"], "name: RUST_LOG"),
        (&["controller.extraArgs[0]=--status=none"], "- --status=none"),
        (&["controller.resources.limits.memory=3Gi"], "memory: 3Gi"),
        (&["controller.priorityClassName=other"], "priorityClassName: other"),
        (&["controller.terminationGracePeriodSeconds=7"], "terminationGracePeriodSeconds: 7"),
        (&["admission.enabled=false"], "- --no-admission"),
        (&["grafanaDashboards.enabled=true"], "grafana_dashboard: \"1\""),
        (&["networkPolicy.enabled=true"], "kind: NetworkPolicy"),
        (&["resourceQuotas.enabled=true", "resourceQuotas.pods=9"], "pods: \"9\""),
        (&["createNamespace=true"], "kind: Namespace"),
    ];
    let plain = with(&renderer, &[]);
    for (sets, expected) in cases {
        let flags: Vec<&str> = sets.iter().flat_map(|set| ["-set", set]).collect();
        let text = with(&renderer, &flags);
        assert!(text.contains(expected), "{sets:?} should give {expected}");
        assert!(text != plain, "{sets:?} has no effect");
    }
}

/// The table of platforms in the comments of the values: name, and the three directories.
fn platforms() -> Vec<(String, [String; 3])> {
    let text = fs::read_to_string(root().unwrap().join("deploy/helm/weft/values.yaml")).unwrap();
    let rows = text.lines().filter_map(|line| line.strip_prefix("#   "));
    let rows = rows.map(|row| row.split_whitespace().map(str::to_owned).collect::<Vec<_>>());
    let row = |row: Vec<String>| match <[String; 4]>::try_from(row) {
        Ok([name, bin, conf, netns]) => (name.trim_matches('"').to_owned(), [bin, conf, netns]),
        Err(row) => panic!("a row with another number of columns: {row:?}"),
    };
    rows.skip(1).map(row).collect()
}

#[test]
fn paths_of_platforms_are_those_of_the_table() {
    let Some(renderer) = renderer("paths_of_platforms_are_those_of_the_table") else { return };
    let schema = fs::read_to_string(root().unwrap().join("deploy/helm/weft/values.schema.json")).unwrap();
    let schema: serde_json::Value = serde_json::from_str(&schema).unwrap();
    let table = platforms();
    let named: Vec<_> = table.iter().map(|(name, _)| serde_json::Value::from(name.as_str())).collect();
    assert_eq!(schema["properties"]["platform"]["enum"], serde_json::Value::from(named));
    for (platform, paths) in table {
        let text = with(&renderer, &["-set", &format!("platform={platform}")]);
        for (volume, path) in ["cni-bin", "cni-conf", "netns"].into_iter().zip(paths) {
            let mounted =
                format!("- name: {volume}\n        hostPath: {{path: {path}, type: DirectoryOrCreate}}");
            assert!(text.contains(&mounted), "{platform}: {mounted}");
        }
    }
}

#[test]
fn containers_have_no_more_rights_than_they_need() {
    let Some(renderer) = renderer("containers_have_no_more_rights_than_they_need") else { return };
    let text = with(&renderer, &[]);
    let containers: Vec<_> = text.split("image: docker.io/weft/weft:").skip(1).collect();
    assert_eq!(containers.len(), 3, "agent, holder, controller");
    for container in containers {
        let (_, security) = container.split_once("securityContext:").unwrap();
        let (security, _) = security.split_once("volumeMounts:").unwrap_or((security, ""));
        for line in ["readOnlyRootFilesystem: true", "seccompProfile: {type: RuntimeDefault}"] {
            assert!(security.contains(line), "{line}: {security}");
        }
        assert!(security.contains("drop: [ALL]") && !security.contains("privileged: true"), "{security}");
        // The agent alone needs the node's own user, and rights that belong to it.
        let is_agent = container.contains("--pin-dir=");
        let is_holder = container.contains("- hold\n");
        assert_eq!(security.contains("add:"), is_agent, "{security}");
        assert_eq!(security.contains("runAsNonRoot: true"), !is_agent && !is_holder, "{security}");
        assert_eq!(security.contains("allowPrivilegeEscalation: false"), !is_agent, "{security}");
    }
}

#[test]
fn the_holder_has_no_rights_and_can_be_left_out() {
    let Some(renderer) = renderer("the_holder_has_no_rights_and_can_be_left_out") else { return };
    let plain = with(&renderer, &[]);
    let (_, holder) = plain.split_once("initContainers:").unwrap();
    let (holder, _) = holder.split_once("      containers:").unwrap();
    for line in [
        "restartPolicy: Always",
        "drop: [ALL]",
        "allowPrivilegeEscalation: false",
        "readOnlyRootFilesystem: true",
    ] {
        assert!(holder.contains(line), "{line}");
    }
    assert!(!holder.contains("add:"), "it has capabilities");
    assert_eq!(
        holder.matches("mountPath:").count(),
        1,
        "it sees more than the place where it meets the agent"
    );
    assert!(!with(&renderer, &["-set", "agent.holder.enabled=false"]).contains("holder"));
}

#[test]
fn monitoring_is_left_out_where_the_cluster_does_not_know_it() {
    let Some(renderer) = renderer("monitoring_is_left_out_where_the_cluster_does_not_know_it") else {
        return;
    };
    let on = ["-set", "podMonitor.enabled=true,prometheusRule.enabled=true"];
    assert!(!with(&renderer, &on).contains("monitoring.coreos.com"));
    for kind in ["PodMonitor", "PrometheusRule"] {
        let version = format!("monitoring.coreos.com/v1/{kind}");
        let text = with(&renderer, &[&on[..], &["-api-version", &version]].concat());
        assert!(text.contains(&format!("kind: {kind}\n")));
    }
}

#[test]
fn a_value_that_does_not_exist_or_has_a_wrong_type_is_refused() {
    let Some(renderer) = renderer("a_value_that_does_not_exist_or_has_a_wrong_type_is_refused") else {
        return;
    };
    for set in
        ["imagee.tag=1", "agent.tolerance=1", "platform=bare", "controller.replicas=many", "cni.binDir=opt"]
    {
        let error = render(&renderer, &["-set", set]).unwrap_err().to_string();
        assert!(error.contains("values don't meet the specifications of the schema"), "{set}: {error}");
    }
}

#[test]
fn every_value_has_a_comment() {
    let text = fs::read_to_string(root().unwrap().join("deploy/helm/weft/values.yaml")).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    let is_key = |line: &str| !line.starts_with([' ', '#', '-']) && line.contains(':');
    let bare: Vec<&str> = lines
        .windows(2)
        .filter(|pair| is_key(pair[1]) && !pair[0].starts_with('#'))
        .map(|pair| pair[1])
        .collect();
    assert_eq!(bare, Vec::<&str>::new(), "values without a comment");
}
