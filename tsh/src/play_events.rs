//! `tsh play --events`: what the kernel told of a session, and what its terminal showed meanwhile, line by line with the time
//! since its start. From auth only: a file has no events.

use net::auth_client::MESSAGE_BYTES_MAX;
use proto::event::{Body, Event};
use proto::id::SessionId;
use proto::rpc::SessionEventsRequest;
use proto::rpc::audit_client::AuditClient;
use serde_json::{Value, json};
use tonic::transport::Channel;

use crate::asciicast::{Recording, Strip, What};
use cli::captured::told;

/// The events of a session, as auth gives them.
#[derive(Debug, Default)]
pub(crate) struct Events {
    events: Vec<Event>,
    /// Of a newer version than ours.
    not_understood: u64,
    /// There are more than we hold.
    is_cut_off: bool,
}

/// Something at a time.
struct Line {
    /// Milliseconds since the session's start.
    at_ms: i64,
    kind: &'static str,
    text: String,
}

/// All of them, in the order in which things happened.
///
/// # Errors
/// Auth's.
pub(crate) async fn load(channel: Channel, sid: &SessionId) -> Result<Events, tonic::Status> {
    let mut audit = AuditClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
    let request = SessionEventsRequest { sid: sid.to_string() };
    let mut lines = audit.session_events(request).await?.into_inner();
    let mut all = Events::default();
    let mut bytes = 0;
    while let Some(line) = lines.message().await? {
        bytes += line.json.len();
        if bytes > EVENTS_BYTES_MAX {
            all.is_cut_off = true;
            break;
        }
        match serde_json::from_slice(&line.json) {
            Ok(event) => all.events.push(event),
            Err(_) => all.not_understood += 1,
        }
    }
    all.events.sort_by_key(|event| event.ei);
    Ok(all)
}

impl Events {
    /// Unix milliseconds of the session's start; of the first event, where that is not there.
    fn start_ms(&self) -> i64 {
        let start = self.events.iter().find(|event| matches!(event.body, Body::SessionStart(_)));
        start.or(self.events.first()).map_or(0, millis)
    }

    /// What is not here, one line each.
    fn missing(&self) -> Vec<String> {
        let mut lines = Vec::new();
        if self.is_cut_off {
            lines.push("! MISSING: the session has more events than are read here\n".to_owned());
        }
        if self.not_understood > 0 {
            let count = self.not_understood;
            lines.push(format!(
                "! MISSING: {count} events that this tsh does not know: update it\n"
            ));
        }
        let lost = self
            .events
            .iter()
            .map(|event| if let Body::SessionLoss(lost) = &event.body { lost.count } else { 0 });
        let lost: u64 = lost.fold(0, u64::saturating_add);
        if lost > 0 {
            lines.push(format!(
                "! LOST: the kernel had no room for {lost} records; see the lines LOST\n"
            ));
        }
        let has_any = self.events.iter().any(|event| told(&event.body).is_some());
        if !has_any {
            lines.push("! The kernel told nothing of this session.\n".to_owned());
        }
        lines
    }
}

/// Lines for people: `+12.345s  exec    [4242] /usr/bin/id`.
pub(crate) fn text(recording: &Recording, events: &Events) -> String {
    let start = events.start_ms();
    let captured = events.events.iter().filter_map(|event| {
        let told = told(&event.body)?;
        let pid = told.pid.map(|pid| format!("[{pid}] ")).unwrap_or_default();
        let text = format!("{pid}{}", told.text);
        Some(Line { at_ms: millis(event) - start, kind: told.kind, text })
    });
    let lines = merged(shown(recording), captured)
        .into_iter()
        .map(|line| format!("{}  {:<7} {}\n", since(line.at_ms), line.kind, line.text));
    events.missing().into_iter().chain(lines).collect()
}

/// One JSON object per line, as `tsh play --format json` has them; an event of the log stands whole in `data`.
pub(crate) fn json_lines(recording: &Recording, events: &Events) -> String {
    let start = events.start_ms();
    let output = shown(recording).into_iter().map(|line| {
        (line.at_ms, json!({"time": seconds(line.at_ms), "event": line.kind, "data": line.text}))
    });
    let captured = events.events.iter().map(|event| {
        let at = millis(event) - start;
        (at, json!({"time": seconds(at), "event": event.name(), "data": event}))
    });
    let mut all: Vec<(i64, Value)> = captured.chain(output).collect();
    all.sort_by_key(|(at, _)| *at);
    all.into_iter().map(|(_, value)| format!("{value}\n")).collect()
}

/// In the order of time; what was told of before what was shown.
fn merged(shown: Vec<Line>, captured: impl Iterator<Item = Line>) -> Vec<Line> {
    let mut all: Vec<Line> = captured.chain(shown).collect();
    all.sort_by_key(|line| line.at_ms);
    all
}

/// What the terminal showed, by lines, each at the time when it began.
fn shown(recording: &Recording) -> Vec<Line> {
    let mut strip = Strip::default();
    let mut lines = Vec::new();
    let (mut begun, mut text) = (None, String::new());
    for moment in &recording.moments {
        let What::Output(data) = &moment.what else { continue };
        for c in strip.feed(data).chars() {
            if c == '\n' {
                lines.extend(begun.take().map(|at_ms| line(at_ms, &mut text)));
            } else {
                begun.get_or_insert(rounded_ms(moment.at));
                text.push(if c == '\t' { ' ' } else { c });
            }
        }
    }
    lines.extend(begun.map(|at_ms| line(at_ms, &mut text)));
    lines
}

fn line(at_ms: i64, text: &mut String) -> Line {
    Line { at_ms, kind: "print", text: std::mem::take(text) }
}

#[expect(clippy::cast_possible_truncation, reason = "held between bounds that fit")]
fn rounded_ms(seconds: f64) -> i64 {
    (seconds * 1000.0).clamp(0.0, 1e15).round() as i64
}

fn millis(event: &Event) -> i64 {
    i64::try_from(event.time.unix_timestamp_nanos() / 1_000_000).unwrap_or(0)
}

fn since(ms: i64) -> String {
    let sign = if ms < 0 { '-' } else { '+' };
    let ms = ms.unsigned_abs();
    format!("{sign}{}.{:03}s", ms / 1000, ms % 1000)
}

fn seconds(ms: i64) -> Value {
    let text = since(ms);
    let number = text.trim_matches(['+', 's']).parse::<f64>();
    number.map_or(Value::Null, Value::from)
}

/// As much as a recording may have.
const EVENTS_BYTES_MAX: usize = 512 << 20;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::asciicast;

    /// The golden events, half a second after the start of a session that shows something before and after.
    fn session() -> (Recording, Events) {
        let cast = "{\"version\":2,\"width\":80,\"height\":24}\n\
            [0.25,\"o\",\"$ \\u001b[1mta\"]\n[0.3,\"o\",\"r\\u001b[0m\\r\\n\"]\n\
            [12.5,\"o\",\"done\\tnow\"]\n";
        let golden = include_str!("../../proto/tests/golden/events.jsonl");
        let mut events: Vec<Event> =
            golden.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        events.retain(|event| proto::event::CAPTURED.contains(&event.name()));
        for event in &mut events {
            if event.name() != "session.start" {
                event.time += std::time::Duration::from_millis(500);
            }
        }
        let recording = asciicast::parse(cast).unwrap();
        (recording, Events { events, ..Events::default() })
    }

    #[test]
    fn events_stand_between_what_was_shown() {
        let (recording, events) = session();
        insta::assert_snapshot!(text(&recording, &events));
        let json = json_lines(&recording, &events);
        let kinds: Vec<Value> = json
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).unwrap()["event"].clone())
            .collect();
        assert_eq!((&kinds[0], &kinds[1]), (&json!("session.start"), &json!("print")));
        assert_eq!(kinds.last().unwrap(), &json!("print"));
        assert_eq!(kinds.len(), events.events.len() + 2);
    }

    #[test]
    fn what_is_missing_is_said_first() {
        let (recording, mut events) = session();
        events.not_understood = 2;
        events.is_cut_off = true;
        let lines = text(&recording, &events);
        assert!(lines.starts_with("! MISSING: the session has more"), "{lines}");
        assert!(lines.lines().nth(1).unwrap().starts_with("! MISSING: 2 events"), "{lines}");
        let nothing = text(&recording, &Events::default());
        assert!(nothing.starts_with("! The kernel told nothing"), "{nothing}");
    }

    #[test]
    fn times_have_a_sign() {
        assert_eq!(since(12_345), "+12.345s");
        assert_eq!(since(-7), "-0.007s");
        assert_eq!(seconds(12_345), json!(12.345));
        assert_eq!(seconds(-500), json!(-0.5));
    }
}
