#![allow(clippy::unwrap_used, reason = "tests")]

use proptest::prelude::*;

use super::*;

#[test]
fn what_re2_accepts() {
    let valid = [
        "",
        "a",
        "a|b|",
        "()",
        "(|a)",
        "(a)",
        "(?:a)",
        "(?i)a",
        "(?i:a)",
        "(?i-s:a)",
        "(?)a",
        "(?P<n>a)",
        "(?<n1>a)",
        "(?P<1>a)",
        "[a]",
        "[^a]",
        "[]a]",
        "[a-]",
        "[-a]",
        "[a-b-c]",
        "[[]",
        "[[:word:]]",
        "[[:^alpha:]]",
        r"[\d\-x]",
        r"[^\D]",
        "[a&&b]",
        "[+--b]",
        "[[a]]",
        "a{2}",
        "a{2,}",
        "a{2,3}",
        "a{,2}",
        "a{",
        "a{x}",
        "{",
        "{a}",
        "}",
        "]",
        "a*?",
        "a+?",
        "a??",
        "a{2}?",
        "^*",
        r"\b",
        r"\B",
        r"\A\z",
        r"\pN",
        r"\p{Greek}",
        r"\P{^Lu}",
        r"\Qa.b*\E+",
        r"\Qa",
        r"\x41",
        r"\x{1F600}",
        r"\012",
        r"\123",
        r"\0",
        r"\.\-\/\_\ \<\@\!",
        r"(a{10}){100}",
        "a{1000}",
        "(?s).*",
        "(?U)a+",
        "é*",
        r"^(.*?;)?(vip=false)(;.*)?$",
        r"^/service/([^/]+)(/.*)$",
        "(?im)^a$",
        ".{0,1000}",
        "[^/]{1,255}",
    ];
    for pattern in valid {
        assert!(whole(pattern).is_ok(), "{pattern}: {:?}", whole(pattern));
    }
}

#[test]
fn what_re2_refuses() {
    let invalid = [
        "(",
        ")",
        "a)",
        "(a",
        "(?i",
        "(?x)a",
        "(?=a)",
        "(?!a)",
        "(?<=a)",
        "(?<!a)",
        "(?>a)",
        "(?P=n)",
        "(?P<>a)",
        "(?P<n>a)(?P<n>b)",
        "(?P<n-m>a)",
        "(?i-)a",
        "[",
        "[a",
        "[]",
        "[^]",
        "[b-a]",
        "[[:nope:]]",
        r"[a-\d]",
        r"[\",
        "*",
        "?",
        "+a",
        "(*)",
        "a|*",
        "a**",
        "a+*",
        "a???",
        "a*+",
        "a{2}*",
        "a{2}{3}",
        "a{1001}",
        "a{3,2}",
        "a{2,1001}",
        "{2}",
        "(a{100}){100}",
        "((a{20}){20}){20}",
        r"\",
        r"\8",
        r"\1",
        r"(a)\1",
        r"\Z",
        r"\E",
        r"\C",
        r"\u1234",
        r"\x",
        r"\x4",
        r"\x{}",
        r"\x{110000}",
        r"\p{Nope}",
        r"\p{greek}",
        r"\p",
        r"\é",
        r"\y",
        r"\p{Greek",
    ];
    for pattern in invalid {
        assert!(translate(pattern).is_err(), "{pattern}: {:?}", translate(pattern));
    }
    assert_eq!(translate(&"a".repeat(1025)), Err(Re2Error::TooLong));
    assert!(translate(&"a".repeat(1024)).is_ok());
}

#[test]
fn expressions_mean_the_same() {
    let cases = [
        (r"\d+", "12", true),
        (r"\d+", "١", false),
        (r"\w+", "é", false),
        (r"\s", "\u{b}", false),
        (r"\s", " ", true),
        ("[a&&b]", "&", true),
        ("[[a]]", "a]", true),
        ("[a-z&&[^b]]", "&]", true),
        ("a{,2}", "a{,2}", true),
        (r"\Qa.b\E", "a.b", true),
        (r"\Qa.b\E", "axb", false),
        (r"\012", "\n", true),
        (r"\123", "S", true),
        ("(?i)ab", "AB", true),
        ("(?i:a)b", "AB", false),
        (".", "\n", false),
        ("(?s).", "\n", true),
        ("a|ab", "ab", true),
        (".*Chrome.*", "x Chrome y", true),
        ("Chrome", "x Chrome", false),
        ("/re[0-9]+", "/re12x", false),
        (r"[\W]", "-", true),
        (r"[^\W]", "a", true),
        (r"[\D]", "1", false),
        ("(?)a", "a", true),
        ("#", "#", true),
        (r"a\b.b", "a b", true),
        (r"[\]\-^]+", "]-^", true),
        ("(?m)^a$", "a\na", false),
    ];
    for (pattern, text, matches) in cases {
        assert_eq!(whole(pattern).unwrap().is_match(text), matches, "{pattern} on {text:?}");
    }
    let rewrite = anywhere(r"^/service/([^/]+)(?P<rest>/.*)$").unwrap();
    let groups = rewrite.captures("/service/foo/v1/api").unwrap();
    assert_eq!((groups.get(1).unwrap().as_str(), groups.get(2).unwrap().as_str()), ("foo", "/v1/api"));
}

#[test]
fn an_expression_that_explodes_is_refused() {
    assert_eq!(whole(r"[\pL\pN]{1000}").map(drop), Err(Re2Error::TooLarge));
}

proptest! {
    #[test]
    fn no_text_makes_it_panic(pattern in r"[a-c\\\[\](){}*+?|^$.,:<>PQEdwxp0-9&~-]{0,24}") {
        if translate(&pattern).is_ok() {
            prop_assert!(!matches!(whole(&pattern), Err(Re2Error::Unknown(_))), "{pattern} as {:?}", translate(&pattern));
        }
    }

    #[test]
    fn quoted_text_matches_itself(text in r"[^\\]{0,20}") {
        let quoted = ["\\Q", &text, "\\E"].concat();
        prop_assert!(whole(&quoted).unwrap().is_match(&text));
    }
}
