//! `tsh recordings ls`: which sessions were recorded.

use net::auth_client::MESSAGE_BYTES_MAX;
use proto::recording::Summary;
use proto::rpc::ListRecordingsRequest;
use proto::rpc::audit_client::AuditClient;
use time::macros::format_description;
use time::{Date, Duration, OffsetDateTime, Time};

use crate::first_contact::call;
use crate::flags::RecordingsArgs;
use crate::signed_in::SignedIn;
use cli::failure::{Failure, Fallible as _};
use cli::output::{Format, print, rfc3339, structured, table};

/// # Errors
/// Auth does not answer or does not allow it.
pub(crate) async fn list(signed_in: &SignedIn, args: &RecordingsArgs) -> Result<(), Failure> {
    let (since, until) = bounds(args, OffsetDateTime::now_utc())?;
    let mut audit =
        AuditClient::new(signed_in.auth()?).max_decoding_message_size(MESSAGE_BYTES_MAX);
    let request = ListRecordingsRequest { since, until, limit: args.limit };
    let summaries = audit.list_recordings(call(request)).await?.into_inner().summaries;
    let summaries: Vec<Summary> = summaries
        .iter()
        .map(|json| serde_json::from_slice(json))
        .collect::<Result<_, _>>()
        .doing("auth's answer is not understood")?;
    if let Some(note) = cut_off(summaries.len(), args.limit) {
        eprintln!("{note}");
    }
    match args.format {
        Format::Text => print(&text(&summaries)),
        Format::Json | Format::Yaml => print(&structured(&summaries, args.format)?),
    }
}

/// From and until, Unix milliseconds; 0: no bound. The last day counts whole.
fn bounds(args: &RecordingsArgs, now: OffsetDateTime) -> Result<(i64, i64), Failure> {
    if let Some(span) = args.last {
        let back = Duration::try_from(span.0).unwrap_or(Duration::ZERO);
        return Ok((millis(now - back), 0));
    }
    let day = |text: &Option<String>| text.as_deref().map(parse_day).transpose();
    let since = day(&args.from_utc)?.map_or(0, millis);
    let until = day(&args.to_utc)?.map_or(0, |day| millis(day + Duration::DAY));
    Ok((since, until))
}

fn parse_day(text: &str) -> Result<OffsetDateTime, Failure> {
    let format = format_description!("[year]-[month]-[day]");
    let day = Date::parse(text, format)
        .map_err(|_| Failure::usage(format!("{text:?} is no day: write YYYY-MM-DD")))?;
    Ok(day.with_time(Time::MIDNIGHT).assume_utc())
}

fn millis(time: OffsetDateTime) -> i64 {
    time.unix_timestamp().saturating_mul(1000)
}

/// What to say when there may be more.
fn cut_off(count: usize, limit: u32) -> Option<String> {
    let full = usize::try_from(limit).is_ok_and(|limit| limit > 0 && count >= limit);
    full.then(|| format!("Only the newest {limit} are listed; for more pass a larger --limit."))
}

fn text(summaries: &[Summary]) -> String {
    let row = |summary: &Summary| {
        let mut what =
            if summary.interactive { "shell".to_owned() } else { summary.command.clone() };
        if summary.truncated {
            what.push_str(" (truncated)");
        }
        vec![
            summary.sid.to_string(),
            "ssh".into(),
            summary.user.to_string(),
            summary.login.to_string(),
            summary.server_hostname.to_string(),
            rfc3339(summary.session_start.unix_timestamp()),
            what,
        ]
    };
    let head = ["ID", "Type", "Participants", "Login", "Hostname", "Timestamp", "What"];
    table(&head, &summaries.iter().map(row).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(from: Option<&str>, to: Option<&str>, last: Option<&str>) -> RecordingsArgs {
        RecordingsArgs {
            from_utc: from.map(Into::into),
            to_utc: to.map(Into::into),
            last: last.map(|l| l.parse().unwrap()),
            limit: 50,
            format: Format::Text,
        }
    }

    #[test]
    fn bounds_are_days_or_a_span_back() {
        let now = OffsetDateTime::from_unix_timestamp(1_000_000).unwrap();
        let day = 86_400_000;
        let check = |a: RecordingsArgs| bounds(&a, now).ok();
        assert_eq!(check(args(None, None, None)), Some((0, 0)));
        assert_eq!(check(args(Some("1970-01-02"), Some("1970-01-02"), None)), Some((day, 2 * day)));
        assert_eq!(check(args(None, None, Some("1h"))), Some((996_400_000, 0)));
        assert_eq!(check(args(Some("yesterday"), None, None)), None);
    }

    #[test]
    fn a_full_list_may_not_be_all() {
        assert_eq!(cut_off(49, 50), None);
        assert!(cut_off(50, 50).unwrap().contains("--limit"));
    }

    #[test]
    fn one_line_per_recording() {
        let summary = Summary {
            sid: proto::id::SessionId::from_random([1; 16]),
            user: "alice".parse().unwrap(),
            login: "root".parse().unwrap(),
            server_id: proto::id::HostId::from_random([2; 16]),
            server_hostname: "web1".parse().unwrap(),
            session_start: OffsetDateTime::UNIX_EPOCH + std::time::Duration::from_secs(1),
            session_stop: OffsetDateTime::UNIX_EPOCH,
            interactive: false,
            command: "uname -a".into(),
            truncated: true,
            length: 10,
        };
        insta::assert_snapshot!(text(&[summary]));
    }
}
