//! `tsh status`: who is signed in where, in the established shape. Fails when the active login has expired.

use std::collections::BTreeMap;
use std::time::Duration;

use proto::resource::Span;
use serde::Serialize;
use time::format_description::BorrowedFormatItem;
use time::macros::format_description;
use time::{OffsetDateTime, UtcOffset};

use crate::home::Home;
use crate::signed_in::SignedIn;
use cli::failure::Failure;
use cli::output::{Format, plain, print, rfc3339, structured};

/// One login as shown.
#[derive(Debug, Clone, Serialize)]
struct Shown {
    profile_url: String,
    username: String,
    cluster: String,
    roles: Vec<String>,
    traits: BTreeMap<String, Vec<String>>,
    logins: Vec<String>,
    kubernetes_enabled: bool,
    valid_until: String,
    extensions: Vec<String>,
    #[serde(skip)]
    valid_until_unix: i64,
}

#[derive(Debug, Serialize)]
struct Report {
    active: Option<Shown>,
    profiles: Vec<Shown>,
}

/// # Errors
/// Nobody is signed in, the active login has expired, or its files are damaged.
pub(crate) fn run(home: &Home, format: Format) -> Result<(), Failure> {
    let report = collect(home)?;
    let now = net::unix_now();
    match format {
        Format::Text => print(&text(&report, now, local_offset()))?,
        Format::Json | Format::Yaml => print(&structured(&report, format)?)?,
    }
    match &report.active {
        None => {
            Err(Failure::new("not logged in").hint("Run `tsh login --proxy=HOST --user=NAME`."))
        }
        Some(active) if active.valid_until_unix <= now => {
            Err(Failure::new("the active login has expired").hint("Run `tsh login`."))
        }
        Some(_) => Ok(()),
    }
}

/// The active login as text.
///
/// # Errors
/// As [`run`].
pub(crate) fn print_active(home: &Home) -> Result<(), Failure> {
    run(home, Format::Text)
}

fn collect(home: &Home) -> Result<Report, Failure> {
    let current = home.current();
    let mut report = Report { active: None, profiles: vec![] };
    for host in home.proxy_hosts() {
        let is_active = current.as_deref() == Some(host.as_str());
        match SignedIn::load_any(home, &host) {
            Ok(Some(held)) if is_active => report.active = Some(shown(&held)),
            Ok(Some(held)) => report.profiles.push(shown(&held)),
            Err(failure) if is_active => return Err(failure),
            Ok(None) | Err(_) => {}
        }
    }
    Ok(report)
}

fn shown(held: &SignedIn) -> Shown {
    let extensions = held.ssh_certificate.extensions().keys().cloned();
    Shown {
        profile_url: format!("https://{}", held.proxy),
        username: held.user.to_string(),
        cluster: held.cluster.to_string(),
        roles: held.profile.roles.clone(),
        traits: held.profile.traits.clone(),
        logins: sorted(held.logins().iter().map(ToString::to_string)),
        kubernetes_enabled: false,
        valid_until: rfc3339(held.valid_until()),
        // Ours carries the claims, which are shown above.
        extensions: extensions.filter(|name| !name.contains('@')).collect(),
        valid_until_unix: held.valid_until(),
    }
}

fn sorted(list: impl Iterator<Item = String>) -> Vec<String> {
    let mut list: Vec<String> = list.collect();
    list.sort();
    list
}

fn text(report: &Report, now: i64, offset: UtcOffset) -> String {
    let mut text = String::new();
    for (mark, shown) in report
        .active
        .iter()
        .map(|shown| ('>', shown))
        .chain(report.profiles.iter().map(|shown| (' ', shown)))
    {
        let lines = [
            ("Profile URL:", shown.profile_url.clone()),
            ("Logged in as:", shown.username.clone()),
            ("Cluster:", shown.cluster.clone()),
            ("Roles:", shown.roles.join(", ")),
            ("Logins:", shown.logins.join(", ")),
            ("Valid until:", validity(shown.valid_until_unix, now, offset)),
            ("Extensions:", shown.extensions.join(", ")),
        ];
        for (index, (label, value)) in lines.iter().enumerate() {
            let mark = if index == 0 { mark } else { ' ' };
            text.push_str(format!("{mark} {label:<18} {}", plain(value)).trim_end());
            text.push('\n');
        }
        text.push('\n');
    }
    text
}

/// `2026-09-23 22:30:43 +0200 [valid for 12h0m0s]`.
fn validity(until: i64, now: i64, offset: UtcOffset) -> String {
    let time = OffsetDateTime::from_unix_timestamp(until).unwrap_or(OffsetDateTime::UNIX_EPOCH);
    let time = clock(time.to_offset(offset));
    match u64::try_from(until - now) {
        Ok(left) if left > 0 => {
            let left = Span(Duration::from_secs(left - left % 60));
            format!("{time} [valid for {left}]")
        }
        Ok(_) | Err(_) => format!("{time} [EXPIRED]"),
    }
}

/// Known only while there is one thread; UTC otherwise.
fn local_offset() -> UtcOffset {
    UtcOffset::current_local_offset().unwrap_or(UtcOffset::UTC)
}

/// `2026-09-23 22:30:43 +0200` in the offset of `time`.
fn clock(time: OffsetDateTime) -> String {
    const FORMAT: &[BorrowedFormatItem<'_>] = format_description!(
        "[year]-[month]-[day] [hour]:[minute]:[second] [offset_hour sign:mandatory][offset_minute]"
    );
    time.format(&FORMAT).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn login(user: &str, until: i64) -> Shown {
        Shown {
            profile_url: "https://proxy.example.com:3080".into(),
            username: user.into(),
            cluster: "example.com".into(),
            roles: vec!["access".into(), "auditor".into()],
            traits: [("logins".to_owned(), vec!["root".to_owned()])].into(),
            logins: vec!["root".into(), "deploy".into()],
            kubernetes_enabled: false,
            valid_until: rfc3339(until),
            extensions: vec!["permit-port-forwarding".into(), "permit-pty".into()],
            valid_until_unix: until,
        }
    }

    #[test]
    fn text_has_the_established_shape() {
        let report = Report {
            active: Some(login("alice", 12 * 3600 + 90)),
            profiles: vec![login("bob", 100)],
        };
        let offset = UtcOffset::from_hms(2, 0, 0).unwrap();
        insta::assert_snapshot!(text(&report, 120, offset));
    }

    #[test]
    fn json_has_the_established_fields() {
        let report = Report { active: Some(login("alice", 60)), profiles: vec![] };
        insta::assert_snapshot!(structured(&report, Format::Json).unwrap());
    }

    #[test]
    fn nobody_signed_in_is_a_failure() {
        let dir = tempfile::tempdir().unwrap();
        assert!(run(&Home::at(dir.path()), Format::Json).is_err());
    }
}
