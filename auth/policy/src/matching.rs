//! Labels, logins, templates: the leaves of a decision, compiled from a role's texts and asked by [`crate::decide`].
//!
//! - Label values are a literal, `*`, or `^regexp$` (Rust `regex` syntax), which must match the whole value: in
//!   `^dev|test$` too. Other uses of `*`, `^`, `$` at these places and templates are not understood.
//! - In `allow`, a node matches when *every* listed label matches; no labels listed match no node. In `deny`, *any* listed
//!   label that matches denies. `'*': '*'` matches every node, also one without labels.
//! - Logins are literals or templates: `{{internal.name}}` or `{{external.name}}` stands for each value of the user's
//!   trait, with literal text before and after it if wanted. `deny` also takes `*`.

use std::collections::BTreeMap;

use proto::id::Login;
use proto::resource::{Labels, OneOrMany, Traits};
use regex::{Regex, RegexBuilder};

/// What a role's text does not mean to this version. For whoever writes roles.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    #[error("label {0:?}: only '*': '*' may use * as a name, and names are no templates")]
    LabelName(String),
    #[error("login {0:?} is no login and no template")]
    Login(String),
    #[error("{0:?} is not a valid regular expression: write ^...$")]
    Regexp(String),
    #[error("{0:?} is not a template: write {{{{internal.name}}}} or {{{{external.name}}}}")]
    Template(String),
    #[error("label value {0:?}: write a literal, * or ^regexp$")]
    Value(String),
}

/// One accepted label value.
#[derive(Debug)]
enum ValuePattern {
    Any,
    Literal(String),
    Regexp(Box<Regex>),
}

impl ValuePattern {
    fn compile(text: &str) -> Result<Self, PatternError> {
        if text == "*" {
            return Ok(Self::Any);
        }
        if text.contains("{{") {
            return Err(PatternError::Value(text.to_owned()));
        }
        match (text.starts_with('^'), text.ends_with('$')) {
            (true, true) => Ok(Self::Regexp(Box::new(whole_match(text)?))),
            (false, false) if !text.contains('*') => Ok(Self::Literal(text.to_owned())),
            _ => Err(PatternError::Value(text.to_owned())),
        }
    }

    fn matches(&self, value: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Literal(literal) => literal == value,
            Self::Regexp(regexp) => regexp.is_match(value),
        }
    }
}

/// `^...$` that matches whole values only. It must be valid as written, so that the group around it can't be broken out of.
fn whole_match(text: &str) -> Result<Regex, PatternError> {
    let bad = || PatternError::Regexp(text.to_owned());
    let inner = text.strip_prefix('^').and_then(|t| t.strip_suffix('$')).ok_or_else(bad)?;
    if text.len() > REGEXP_BYTES_MAX {
        return Err(bad());
    }
    bounded(inner).map_err(|_| bad())?;
    bounded(&format!(r"\A(?:{inner})\z")).map_err(|_| bad())
}

fn bounded(text: &str) -> Result<Regex, regex::Error> {
    RegexBuilder::new(text)
        .size_limit(REGEXP_COMPILED_BYTES_MAX)
        .dfa_size_limit(REGEXP_CACHE_BYTES_MAX)
        .nest_limit(REGEXP_DEPTH_MAX)
        .build()
}

/// The labels that a role lists.
#[derive(Debug, Default)]
pub(crate) struct LabelMatcher {
    /// `'*': '*'` is listed.
    every_node: bool,
    names: Vec<(String, Vec<ValuePattern>)>,
}

impl LabelMatcher {
    pub(crate) fn compile(listed: &BTreeMap<String, OneOrMany>) -> Result<Self, PatternError> {
        let mut matcher = Self::default();
        for (name, values) in listed {
            if name == "*" {
                if values.values() != ["*"] {
                    return Err(PatternError::LabelName(name.clone()));
                }
                matcher.every_node = true;
                continue;
            }
            if name.contains("{{") || name.contains('*') {
                return Err(PatternError::LabelName(name.clone()));
            }
            let values: Result<_, _> =
                values.values().iter().map(|v| ValuePattern::compile(v)).collect();
            matcher.names.push((name.clone(), values?));
        }
        Ok(matcher)
    }

    /// For `allow`.
    pub(crate) fn every_listed_matches(&self, labels: &Labels) -> bool {
        let lists_something = self.every_node || !self.names.is_empty();
        lists_something && self.names.iter().all(|listed| one_matches(listed, labels))
    }

    /// For `deny`.
    pub(crate) fn any_listed_matches(&self, labels: &Labels) -> bool {
        self.every_node || self.names.iter().any(|listed| one_matches(listed, labels))
    }
}

fn one_matches((name, values): &(String, Vec<ValuePattern>), labels: &Labels) -> bool {
    labels.get(name).is_some_and(|value| values.iter().any(|pattern| pattern.matches(value)))
}

/// Which half of a role a login pattern stands in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Half {
    Allow,
    Deny,
}

/// One login that a role lists.
#[derive(Debug)]
pub(crate) enum LoginPattern {
    /// Only in `deny`.
    Any,
    Literal(Login),
    Template(Template),
}

impl LoginPattern {
    pub(crate) fn compile(text: &str, half: Half) -> Result<Self, PatternError> {
        if text == "*" && half == Half::Deny {
            return Ok(Self::Any);
        }
        if text.contains("{{") || text.contains("}}") {
            return Ok(Self::Template(Template::compile(text)?));
        }
        // Text that can't be a login would match nothing, and a denial must not be empty by mistake.
        Login::parse(text).map(Self::Literal).map_err(|_| PatternError::Login(text.to_owned()))
    }

    pub(crate) fn matches(&self, login: &Login, traits: &Traits) -> bool {
        match self {
            Self::Any => true,
            Self::Literal(literal) => literal == login,
            Self::Template(template) => template.matches(login.as_str(), traits),
        }
    }

    /// The logins it stands for. Values that are no login are left out; [`Self::Any`] has no list.
    pub(crate) fn expand(&self, traits: &Traits) -> Vec<Login> {
        match self {
            Self::Any => Vec::new(),
            Self::Literal(login) => vec![login.clone()],
            Self::Template(template) => {
                template.expand(traits).filter_map(|text| Login::parse(text).ok()).collect()
            }
        }
    }
}

/// Text with one trait in it.
#[derive(Debug)]
pub(crate) struct Template {
    before: String,
    trait_name: String,
    after: String,
}

impl Template {
    fn compile(text: &str) -> Result<Self, PatternError> {
        let bad = || PatternError::Template(text.to_owned());
        let (before, rest) = text.split_once("{{").ok_or_else(bad)?;
        let (variable, after) = rest.split_once("}}").ok_or_else(bad)?;
        let variable = variable.trim();
        let name = variable.strip_prefix("internal.").or(variable.strip_prefix("external."));
        let name = name.ok_or_else(bad)?;
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
        let braces = |text: &str| text.contains(['{', '}']);
        if name.is_empty() || !name.chars().all(plain) || braces(before) || braces(after) {
            return Err(bad());
        }
        Ok(Self { before: before.into(), trait_name: name.into(), after: after.into() })
    }

    fn values<'a>(&'a self, traits: &'a Traits) -> impl Iterator<Item = &'a String> {
        traits.get(&self.trait_name).into_iter().flatten()
    }

    fn matches(&self, text: &str, traits: &Traits) -> bool {
        let middle = text.strip_prefix(&self.before).and_then(|t| t.strip_suffix(&self.after));
        middle.is_some_and(|middle| self.values(traits).any(|value| value == middle))
    }

    fn expand<'a>(&'a self, traits: &'a Traits) -> impl Iterator<Item = String> + 'a {
        self.values(traits).map(|value| format!("{}{value}{}", self.before, self.after))
    }
}

/// Longest regular expression text; people write tens of characters.
const REGEXP_BYTES_MAX: usize = 512;
/// Memory of one compiled expression: Unicode classes fit, counted repetitions that explode do not.
const REGEXP_COMPILED_BYTES_MAX: usize = 256 * 1024;
/// Memory of one expression's lazy automaton per thread; beyond it matching is slower, still linear.
const REGEXP_CACHE_BYTES_MAX: usize = 256 * 1024;
/// Depth of groups in groups.
const REGEXP_DEPTH_MAX: u32 = 32;

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(list: &[(&str, &str)]) -> Labels {
        list.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect()
    }

    fn matcher(list: &[(&str, &[&str])]) -> Result<LabelMatcher, PatternError> {
        let many = |values: &[&str]| OneOrMany::Many(values.iter().map(|v| (*v).into()).collect());
        let listed = list.iter().map(|(name, values)| ((*name).to_owned(), many(values))).collect();
        LabelMatcher::compile(&listed)
    }

    #[test]
    fn label_values() {
        fn check(pattern: &str, value: &str, expect: Option<bool>) {
            let got = ValuePattern::compile(pattern).map(|p| p.matches(value)).ok();
            assert_eq!(got, expect, "{pattern:?} {value:?}");
        }
        check("prod", "prod", Some(true));
        check("prod", "production", Some(false));
        check("", "", Some(true));
        check("*", "", Some(true));
        check("*", "anything", Some(true));
        check("^prod-[0-9]+$", "prod-12", Some(true));
        check("^prod-[0-9]+$", "prod-12x", Some(false));
        check("^prod-[0-9]+$", "xprod-12", Some(false));
        check("^prod$", "prod\n", Some(false));
        check("^(?m)prod$", "prod\nx", Some(false));
        check("^dev|test$", "dev", Some(true));
        check("^dev|test$", "test", Some(true));
        check("^dev|test$", "developer", Some(false));
        check("^dev|test$", "mytest", Some(false));
        check("^$", "", Some(true));
        check("^a.c$", "abc", Some(true));
        // Not understood: globs, half-anchored expressions, templates, invalid and huge expressions.
        check("prod-*", "prod-1", None);
        check("^prod", "prod", None);
        check("prod$", "prod", None);
        check("^", "", None);
        check("{{internal.team}}", "x", None);
        check("^($", "x", None);
        check("^a)|(b$", "bxx", None);
        check("^(?x)a#$", "a", None);
        check("^(a{1000}){1000}$", "a", None);
        check(&format!("^{}$", "a".repeat(REGEXP_BYTES_MAX)), "a", None);
        check(&format!("^{}a{}$", "(".repeat(100), ")".repeat(100)), "a", None);
    }

    #[test]
    fn allow_needs_every_label_and_deny_needs_any() {
        fn check(listed: &[(&str, &[&str])], node: &[(&str, &str)], allow: bool, deny: bool) {
            let matcher = matcher(listed).unwrap();
            let node = labels(node);
            assert_eq!(matcher.every_listed_matches(&node), allow, "allow {listed:?} {node:?}");
            assert_eq!(matcher.any_listed_matches(&node), deny, "deny {listed:?} {node:?}");
        }
        let node = [("env", "prod"), ("team", "db")];
        check(&[], &node, false, false);
        check(&[("*", &["*"])], &node, true, true);
        check(&[("*", &["*"])], &[], true, true);
        check(&[("env", &["prod"]), ("team", &["db"])], &node, true, true);
        check(&[("env", &["prod"]), ("team", &["web"])], &node, false, true);
        check(&[("env", &["prod"]), ("zone", &["*"])], &node, false, true);
        check(&[("env", &["test"]), ("team", &["web"])], &node, false, false);
        check(&[("env", &["test", "prod"])], &node, true, true);
        check(&[("env", &[])], &node, false, false);
        check(&[("env", &["*"])], &[], false, false);
        check(&[("*", &["*"]), ("env", &["test"])], &node, false, true);
    }

    #[test]
    fn label_names_are_literal() {
        for bad in ["{{internal.x}}", "env*"] {
            assert!(matcher(&[(bad, &["*"])]).is_err(), "{bad}");
        }
        assert!(matcher(&[("*", &["prod"])]).is_err());
        assert!(matcher(&[("*", &["*", "prod"])]).is_err());
        assert!(matcher(&[("*", &[])]).is_err());
    }

    #[test]
    fn templates_expand_to_each_value() {
        fn check(text: &str, expect: Option<&[&str]>) {
            let traits: Traits = [
                ("logins".to_owned(), vec!["alice".into(), "bad name".into(), "ops".into()]),
                ("empty".to_owned(), vec![]),
            ]
            .into();
            let pattern = LoginPattern::compile(text, Half::Allow).ok();
            let logins = pattern.as_ref().map(|p| p.expand(&traits));
            let texts: Option<Vec<_>> =
                logins.as_ref().map(|logins| logins.iter().map(Login::as_str).collect());
            assert_eq!(texts.as_deref(), expect, "{text:?}");
            // What it expands to is what it matches.
            for login in logins.iter().flatten() {
                assert!(pattern.as_ref().unwrap().matches(login, &traits), "{text:?} {login}");
            }
        }
        check("root", Some(&["root"]));
        check("{{internal.logins}}", Some(&["alice", "ops"]));
        check("{{external.logins}}", Some(&["alice", "ops"]));
        check("{{ internal.logins }}", Some(&["alice", "ops"]));
        check("adm-{{internal.logins}}", Some(&["adm-alice", "adm-ops"]));
        check("{{internal.logins}}.x", Some(&["alice.x", "ops.x"]));
        check("{{internal.empty}}", Some(&[]));
        check("{{internal.absent}}", Some(&[]));
        check("{{logins}}", None);
        check("{{internal.}}", None);
        check("{{internal.a.b}}", None);
        check("{{email.local(external.email)}}", None);
        check("{{internal.logins}", None);
        check("internal.logins}}", None);
        check("{{internal.a}}{{internal.b}}", None);
        check("{{{internal.logins}}}", None);
        check("*", None);
        check("^root$", None);
        check("", None);
        check("-oProxyCommand=x", None);
    }

    #[test]
    fn a_star_denies_every_login() {
        let star = LoginPattern::compile("*", Half::Deny).unwrap();
        assert!(star.matches(&"root".parse().unwrap(), &Traits::new()));
        assert!(star.expand(&Traits::new()).is_empty());
    }
}
