//! `tctl events`: the audit log, past and as it happens. JSON goes out as it is kept: one object per line.

use std::collections::VecDeque;

use net::auth_client::MESSAGE_BYTES_MAX;
use proto::event::Event;
use proto::id::SessionId;
use proto::resource::Span;
use proto::rpc::audit_client::AuditClient;
use proto::rpc::{SearchRequest, TailRequest};
use serde::Deserialize as _;
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tonic::transport::Channel;

use crate::call;
use crate::flags::{EventFormat, EventsArgs, EventsCommand};
use crate::resources::word;
use cli::captured::told;
use cli::failure::Failure;
use cli::output::{inert, plain, print};

/// # Errors
/// Auth's.
pub(crate) async fn run(channel: Channel, command: &EventsCommand) -> Result<(), Failure> {
    let mut audit = AuditClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
    match command {
        EventsCommand::Ls(args) => {
            let request = search_request(args, OffsetDateTime::now_utc())?;
            let (events, more) = newest(&mut audit, request, args.limit).await?;
            if more {
                eprintln!("{}", cut_off(args.limit));
            }
            let lines: Vec<String> = events.iter().map(|json| line(json, args.format)).collect();
            print(&lines.concat())
        }
        EventsCommand::Tail(args) => {
            let request =
                TailRequest { types: args.filter.types.clone(), user: args.filter.user.clone() };
            // No deadline: it ends with the connection, which keepalives watch.
            let mut events = audit.tail(request).await?.into_inner();
            while let Some(event) = events.message().await? {
                print(&line(&event.json, args.format))?;
            }
            Ok(())
        }
    }
}

/// At most so many, the oldest of them first, and whether there are more. Auth gives them in pages, from the newest back.
async fn newest(
    audit: &mut AuditClient<Channel>,
    mut request: SearchRequest,
    limit: u32,
) -> Result<(VecDeque<Vec<u8>>, bool), Failure> {
    let mut events = VecDeque::new();
    let mut left = limit;
    loop {
        request.limit = left;
        let page = audit.search(call(request.clone())).await?.into_inner();
        left = left.saturating_sub(u32::try_from(page.events.len()).unwrap_or(u32::MAX));
        let is_empty = page.events.is_empty();
        page.events.into_iter().rev().for_each(|json| events.push_front(json));
        if page.next.is_empty() || left == 0 || is_empty {
            return Ok((events, !page.next.is_empty()));
        }
        request.page = page.next;
    }
}

fn cut_off(limit: u32) -> String {
    format!(
        "Only the newest {limit} are listed; for more pass a larger --limit, or for older ones --until."
    )
}

fn search_request(args: &EventsArgs, now: OffsetDateTime) -> Result<SearchRequest, Failure> {
    let bound = |text: &Option<String>| match text {
        Some(text) => moment(text, now),
        None => Ok(0),
    };
    if !args.session.is_empty() && SessionId::parse(args.session.as_str()).is_err() {
        return Err(Failure::usage(format!("{:?} is no session id", args.session)));
    }
    Ok(SearchRequest {
        types: args.filter.types.clone(),
        user: args.filter.user.clone(),
        since: bound(&args.since)?,
        until: bound(&args.until)?,
        limit: args.limit,
        session: args.session.clone(),
        ..SearchRequest::default()
    })
}

/// Unix milliseconds of an RFC 3339 time, a day, or a span back.
fn moment(text: &str, now: OffsetDateTime) -> Result<i64, Failure> {
    if let Ok(span) = Span::parse(text) {
        return Ok(millis(now - span.0));
    }
    let day = format!("{text}T00:00:00Z");
    OffsetDateTime::parse(text, &Rfc3339)
        .or_else(|_| OffsetDateTime::parse(&day, &Rfc3339))
        .map(millis)
        .map_err(|_| {
            Failure::usage(format!("{text:?} is no time"))
                .hint("Write 2026-11-22T10:00:00Z, 2026-11-22, or how far back: 1h, 7d.")
        })
}

fn millis(time: OffsetDateTime) -> i64 {
    i64::try_from(time.unix_timestamp_nanos() / 1_000_000).unwrap_or(0)
}

fn line(json: &[u8], format: EventFormat) -> String {
    let text = String::from_utf8_lossy(json);
    match (format, serde_json::from_slice::<Value>(json)) {
        (EventFormat::Text, Ok(event)) => format!("{}\n", brief(&event)),
        (EventFormat::Json | EventFormat::Text, _) => inert(text.trim_end()) + "\n",
    }
}

/// When, what, by whom, and what tells it apart from its like.
fn brief(event: &Value) -> String {
    let mut parts = vec![
        word(event, "/time"),
        format!("{:<6}", word(event, "/code")),
        format!("{:<24}", word(event, "/event")),
    ];
    let told = Event::deserialize(event).ok().and_then(|event| told(&event.body));
    let shown = if told.is_some() { SHOWN_OF_TOLD } else { SHOWN };
    for field in shown {
        if let Some(value) = event.get(field) {
            let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            if !value.is_empty() {
                parts.push(format!("{field}={value}"));
            }
        }
    }
    if let Some(told) = told {
        parts.push(format!("{} {}", told.kind, told.text));
    }
    plain(parts.join(" ").trim_end())
}

/// Fields of what the kernel told, which is put in words.
const SHOWN_OF_TOLD: &[&str] = &["user", "sid", "pid"];
/// Fields of the text form, in this order.
const SHOWN: &[&str] = &[
    "user",
    "login",
    "name",
    "node_name",
    "server_hostname",
    "addr.remote",
    "sid",
    "command",
    "exitCode",
    "action",
    "path",
    "addr",
    "target",
    "reason",
    "success",
    "error",
];

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::flags::EventFilter;

    #[test]
    fn times_are_read() {
        let now = OffsetDateTime::from_unix_timestamp(100_000).unwrap();
        let check = |text: &str| moment(text, now).ok();
        assert_eq!(check("1h"), Some(96_400_000));
        assert_eq!(check("1970-01-02"), Some(86_400_000));
        assert_eq!(check("1970-01-01T00:00:01.5Z"), Some(1_500));
        assert_eq!(check("yesterday"), None);
    }

    #[test]
    fn what_the_kernel_told_is_put_in_words() {
        let event = json!({
            "ei": 1, "code": "T4001I", "time": "2026-11-22T12:00:00.500Z", "uid": "", "cluster_name": "demo",
            "event": "session.disk", "sid": "01010101-0101-4101-8101-010101010101",
            "namespace": "default", "user": "alice", "login": "root",
            "server_id": "02020202-0202-4202-8202-020202020202", "server_hostname": "db-1",
            "server_version": "0.1.0", "addr.remote": "", "proto": "ssh", "pid": 7, "program": "rm",
            "op": "unlink", "path": "/etc/motd\u{1b}", "flags": 0, "mode": 0, "file": "", "prov": "lsm",
            "return_code": 0,
        });
        assert_eq!(
            brief(&event),
            "2026-11-22T12:00:00.500Z T4001I session.disk             user=alice \
             sid=01010101-0101-4101-8101-010101010101 pid=7 file unlink $'/etc/motd\\x1b'"
        );
    }

    #[test]
    fn a_session_is_an_id() {
        let args = EventsArgs {
            filter: EventFilter { types: vec![], user: String::new() },
            since: None,
            until: None,
            session: "../x".into(),
            limit: 1,
            format: EventFormat::Json,
        };
        assert!(search_request(&args, OffsetDateTime::UNIX_EPOCH).is_err());
    }

    #[test]
    fn types_are_given_several_times_or_with_commas() {
        let words = ["tctl", "events", "ls", "--type", "exec,port", "--type=session.disk"];
        let cli = <crate::flags::Cli as clap::Parser>::try_parse_from(words).unwrap();
        let crate::flags::Command::Events { command: EventsCommand::Ls(args) } = cli.command else {
            panic!("{cli:?}");
        };
        assert_eq!(args.filter.types, ["exec", "port", "session.disk"]);
        for limit in ["0", "100001"] {
            let words = ["tctl", "events", "ls", "--limit", limit];
            assert!(<crate::flags::Cli as clap::Parser>::try_parse_from(words).is_err());
        }
    }

    #[test]
    fn lines_are_lines() {
        let event = json!({"time": "1970-01-01T00:00:00.000Z", "code": "T3002I", "event": "exec",
            "user": "alice", "command": "printf 'a\nb\u{1b}[2J'", "exitCode": "0"});
        let bytes = serde_json::to_vec(&event).unwrap();
        insta::assert_snapshot!(line(&bytes, EventFormat::Text));
        let json = line(&bytes, EventFormat::Json);
        assert_eq!(json.lines().count(), 1);
        assert_eq!(serde_json::from_str::<Value>(&json).unwrap(), event);
    }
}
