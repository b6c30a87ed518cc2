//! What the compiler cannot put into force in a VirtualService.

use crate::Problem;
use crate::compile::findings::Text;
use crate::problem::Severity;
use crate::re2;
use crate::resource::Kind;
use crate::resource::virtual_service::{HttpRule, TextMatch, VirtualService};

use super::delegate::{Refusal, Refused};
use super::expressions::Expressions;

/// The findings about one VirtualService.
pub(super) fn problems(
    service: &VirtualService,
    refused: &[Refused],
    known: &mut Expressions,
) -> Vec<Problem> {
    let rules = service.http.iter().enumerate();
    let expressions: Vec<_> =
        rules.flat_map(|(at, rule)| expressions(&format!("spec.http[{at}]"), rule, known)).collect();
    let delegates = refused.iter().map(delegate);
    let about = |(severity, text): (Severity, Text)| {
        text.about(severity, Kind::VirtualService, &service.meta.key, service.meta.origin.clone())
    };
    expressions.into_iter().chain(delegates).map(about).collect()
}

fn expressions(at: &str, rule: &HttpRule, known: &mut Expressions) -> Vec<(Severity, Text)> {
    let mut texts = Vec::new();
    let mut check = |field: String, text: Option<&TextMatch>| {
        if let Some(TextMatch::Regex(expression)) = text
            && let Err(error) = known.whole(expression)
        {
            texts.push(expression_text(format!("{at}.{field}"), expression, &error, "never matches"));
        }
    };
    for (own, written) in rule.matches.iter().enumerate() {
        let at = format!("match[{own}]");
        check(format!("{at}.uri"), written.uri.as_ref());
        check(format!("{at}.scheme"), written.scheme.as_ref());
        check(format!("{at}.method"), written.method.as_ref());
        check(format!("{at}.authority"), written.authority.as_ref());
        let lists = [
            ("headers", &written.headers),
            ("withoutHeaders", &written.without_headers),
            ("queryParams", &written.query_params),
        ];
        for (list, entries) in lists {
            for (name, text) in entries {
                check(format!("{at}.{list}[{name}]"), Some(text));
            }
        }
    }
    for (own, origin) in rule.cors.iter().flat_map(|cors| &cors.allow_origins).enumerate() {
        check(format!("corsPolicy.allowOrigins[{own}]"), Some(origin));
    }
    if let Some((expression, _)) = rule.rewrite.as_ref().and_then(|rewrite| rewrite.regex.as_ref())
        && let Err(error) = re2::anywhere(expression)
    {
        let field = format!("{at}.rewrite.uriRegexRewrite.match");
        texts.push(expression_text(field, expression, &error, "rewrites nothing"));
    }
    texts
}

fn expression_text(field: String, expression: &str, error: &re2::Re2Error, effect: &str) -> (Severity, Text) {
    let text = Text {
        code: "WEFT0130",
        name: "ExpressionNotValid",
        field,
        message: format!("the expression {expression:?} is not valid and {effect}: {error}"),
        fix: "write it in RE2's syntax; it has to match the whole value",
    };
    (Severity::Error, text)
}

fn delegate((rule, name, refusal): &Refused) -> (Severity, Text) {
    let own = |at: &usize| format!("spec.http[{at}] of the delegate {name}");
    let (severity, message) = match refusal {
        Refusal::Missing => {
            (Severity::Error, format!("the delegate {name} does not exist: the rule is not in force"))
        }
        Refusal::HasHosts => (
            Severity::Error,
            format!(
                "the delegate {name} has hosts of its own, so it cannot be one: the rule is not in force"
            ),
        ),
        Refusal::NotExported => (
            Severity::Error,
            format!("the delegate {name} is not exported to this namespace: the rule is not in force"),
        ),
        Refusal::Nested(at) => (
            Severity::Error,
            format!("{} delegates again and is not in force: one level is possible", own(at)),
        ),
        Refusal::Outside(at) => (
            Severity::Warning,
            format!("{} matches requests that this rule does not match, and is not in force", own(at)),
        ),
    };
    // The object itself is as Istio admits it: its delegate may come later.
    let (code, name) = match refusal {
        Refusal::Missing => ("IST0101", "ReferencedResourceNotFound"),
        Refusal::HasHosts | Refusal::NotExported | Refusal::Nested(_) | Refusal::Outside(_) => {
            ("WEFT0131", "DelegateNotUsed")
        }
    };
    let text = Text {
        code,
        name,
        field: format!("spec.http[{rule}].delegate"),
        message,
        fix: "name a VirtualService without hosts that is exported to this namespace, whose matches lie within this \
              rule's",
    };
    (severity, text)
}
