//! `tsh play`: a recording on the terminal as it was, as plain text, or as JSON lines. From auth by session id, or from
//! a file. With its events: [`crate::play_events`].

use std::io::{IsTerminal as _, Read as _, Write as _};
use std::path::Path;
use std::time::Duration;

use net::auth_client::MESSAGE_BYTES_MAX;
use proto::id::SessionId;
use proto::rpc::DownloadRequest;
use proto::rpc::audit_client::AuditClient;
use serde_json::json;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};
use tonic::transport::Channel;

use crate::asciicast::{self, Moment, Recording, Strip, Tame, What};
use crate::flags::{PlayArgs, PlayFormat};
use crate::play_events;
use crate::signed_in::SignedIn;
use crate::ssh::session::EndSignals;
use crate::ssh::terminal::RawTerminal;
use cli::failure::{Failure, Fallible as _};
use cli::output::print;

/// # Errors
/// No such recording, not allowed, or damaged.
pub(crate) async fn run(
    signed_in: impl FnOnce() -> Result<SignedIn, Failure>,
    args: &PlayArgs,
) -> Result<(), Failure> {
    if args.events {
        return with_events(signed_in, args).await;
    }
    let text = load(signed_in, &args.session).await?;
    let recording = asciicast::parse(&text)?;
    match args.format {
        PlayFormat::Json => print(&json_lines(&recording)),
        PlayFormat::Text => print(&plain_text(&recording)),
        PlayFormat::Pty => replay(&recording, args).await,
    }
}

async fn with_events(
    signed_in: impl FnOnce() -> Result<SignedIn, Failure>,
    args: &PlayArgs,
) -> Result<(), Failure> {
    if Path::new(&args.session).is_file() {
        return Err(Failure::usage("--events takes a session id: a file has no events"));
    }
    let sid = session_id(&args.session)?;
    let channel = signed_in()?.auth()?;
    let recording = asciicast::parse(&download(channel.clone(), &sid).await?)?;
    let events = play_events::load(channel, &sid).await.map_err(refused)?;
    print(&match args.format {
        PlayFormat::Json => play_events::json_lines(&recording, &events),
        PlayFormat::Pty | PlayFormat::Text => play_events::text(&recording, &events),
    })
}

/// A file if there is one of that name, else the session of that id (also when written as `<sid>.cast`).
async fn load(
    signed_in: impl FnOnce() -> Result<SignedIn, Failure>,
    session: &str,
) -> Result<String, Failure> {
    let path = Path::new(session);
    if path.is_file() {
        let file = std::fs::File::open(path).doing(session)?;
        let mut bytes = Vec::new();
        file.take(RECORDING_BYTES_MAX + 1).read_to_end(&mut bytes).doing(session)?;
        return to_text(bytes);
    }
    let sid = session_id(session)?;
    download(signed_in()?.auth()?, &sid).await
}

fn session_id(session: &str) -> Result<SessionId, Failure> {
    let name = Path::new(session).file_name().and_then(|name| name.to_str()).unwrap_or(session);
    let name = name.split_once('.').map_or(name, |(stem, _)| stem);
    SessionId::parse(name).map_err(|_| {
        Failure::new(format!("{session:?} is neither a file nor a session id")).hint(WHERE_IDS_ARE)
    })
}

async fn download(channel: Channel, sid: &SessionId) -> Result<String, Failure> {
    let mut audit = AuditClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
    let request = DownloadRequest { sid: sid.to_string() };
    let mut chunks = audit.download_recording(request).await.map_err(refused)?.into_inner();
    let mut bytes = Vec::new();
    while let Some(chunk) = chunks.message().await.map_err(refused)? {
        bytes.extend_from_slice(&chunk.data);
        if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > RECORDING_BYTES_MAX {
            break;
        }
    }
    to_text(bytes)
}

fn refused(status: tonic::Status) -> Failure {
    let missing = status.code() == tonic::Code::NotFound;
    let failure = Failure::from(status);
    if missing { failure.hint(WHERE_IDS_ARE) } else { failure }
}

const WHERE_IDS_ARE: &str = "`tsh recordings ls` prints the session ids.";

/// A crash may have torn the last character.
fn to_text(bytes: Vec<u8>) -> Result<String, Failure> {
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > RECORDING_BYTES_MAX {
        return Err(Failure::new("the recording is too long to be played here"));
    }
    Ok(match String::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => String::from_utf8_lossy(error.as_bytes()).into_owned(),
    })
}

fn plain_text(recording: &Recording) -> String {
    let mut strip = Strip::default();
    let mut text = String::new();
    for moment in &recording.moments {
        if let What::Output(data) = &moment.what {
            text.push_str(&strip.feed(data));
        }
    }
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    text
}

fn json_lines(recording: &Recording) -> String {
    let size = |text: &str| text.replacen('x', ":", 1);
    let header = format!("{}x{}", recording.header.width, recording.header.height);
    let first = json!({"time": 0.0, "event": "session.start", "size": size(&header)});
    let rest = recording.moments.iter().map(|moment| match &moment.what {
        What::Output(data) => json!({"time": moment.at, "event": "print", "data": data}),
        What::Resize(text) => json!({"time": moment.at, "event": "resize", "size": size(text)}),
        What::Other { kind, data } => json!({"time": moment.at, "event": kind, "data": data}),
    });
    std::iter::once(first).chain(rest).map(|line| format!("{line}\n")).collect()
}

/// What a key asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Key {
    Pause,
    Quit,
}

/// In real time; space pauses, q ends. Without a terminal for input it simply runs.
async fn replay(recording: &Recording, args: &PlayArgs) -> Result<(), Failure> {
    if !std::io::stdout().is_terminal() {
        return print(&plain_text(recording));
    }
    let mut told_to_end = EndSignals::new()?;
    let raw = RawTerminal::enter();
    let shown = tokio::select! {
        shown = show(recording, args, raw.is_some().then(read_keys)) => shown,
        () = told_to_end.recv() => Ok(()),
    };
    let mut out = std::io::stdout();
    out.write_all(TERMINAL_AS_BEFORE)?;
    out.flush()?;
    drop(raw);
    shown
}

async fn show(
    recording: &Recording,
    args: &PlayArgs,
    mut keys: Option<mpsc::Receiver<Key>>,
) -> Result<(), Failure> {
    let mut due = Instant::now();
    let mut out = std::io::stdout();
    let mut tame = Tame::default();
    for (wait, moment) in waits(&recording.moments, &args.speed, args.skip_idle_time) {
        due += wait;
        while let Some(key) = key_before(&mut keys, due).await {
            let asked = Instant::now();
            if key == Key::Quit || pause(&mut keys).await == Key::Quit {
                return Ok(());
            }
            due += asked.elapsed();
        }
        if let What::Output(data) = &moment.what {
            out.write_all(tame.feed(data).as_bytes())?;
            out.flush()?;
        }
    }
    Ok(())
}

/// How long before each moment, at this speed.
fn waits<'a>(
    moments: &'a [Moment],
    speed: &str,
    skip_idle: bool,
) -> impl Iterator<Item = (Duration, &'a Moment)> {
    let speed: f64 = speed.trim_end_matches('x').parse().unwrap_or(1.0);
    let mut last = 0.0;
    moments.iter().map(move |moment| {
        let gap = (moment.at - last).max(0.0);
        last = moment.at;
        let gap = if skip_idle { gap.min(IDLE_SECONDS_MAX) } else { gap };
        (Duration::try_from_secs_f64(gap / speed).unwrap_or(GAP_MAX).min(GAP_MAX), moment)
    })
}

/// A key pressed before `due`, if one is.
async fn key_before(keys: &mut Option<mpsc::Receiver<Key>>, due: Instant) -> Option<Key> {
    let Some(keys) = keys else {
        sleep_until(due).await;
        return None;
    };
    tokio::select! {
        biased;
        () = sleep_until(due) => None,
        key = keys.recv() => match key {
            Some(key) => Some(key),
            None => {
                sleep_until(due).await;
                None
            }
        },
    }
}

async fn pause(keys: &mut Option<mpsc::Receiver<Key>>) -> Key {
    match keys {
        Some(keys) => keys.recv().await.unwrap_or(Key::Quit),
        None => Key::Pause,
    }
}

fn read_keys() -> mpsc::Receiver<Key> {
    let (sender, receiver) = mpsc::channel(KEYS_QUEUE);
    std::thread::spawn(move || {
        for byte in std::io::stdin().lock().bytes() {
            let key = match byte {
                Ok(b' ') => Key::Pause,
                Ok(b'q' | 0x03) | Err(_) => Key::Quit,
                Ok(_) => continue,
            };
            if sender.blocking_send(key).is_err() || key == Key::Quit {
                return;
            }
        }
    });
    receiver
}

/// Held in memory; far above the size at which nodes cut recordings.
const RECORDING_BYTES_MAX: u64 = 512 * 1024 * 1024;
/// Leaves colours, the other screen, hidden cursors, and reports of mouse, focus and pasting behind.
const TERMINAL_AS_BEFORE: &[u8] =
    b"\x1b[0m\x1b[?25h\x1b[?1000;1002;1003;1004;1006;2004l\x1b[?1049l\r\n";
/// With `--skip-idle-time`.
const IDLE_SECONDS_MAX: f64 = 0.5;
/// A clock that jumped in the recording must not hang the replay for ever.
const GAP_MAX: Duration = Duration::from_secs(24 * 3600);
const KEYS_QUEUE: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    fn recording() -> Recording {
        let text = "{\"version\":2,\"width\":80,\"height\":24}\n\
            [1.0,\"o\",\"\\u001b[1mhi\"]\n[1.5,\"r\",\"90x30\"]\n[9.5,\"o\",\" there\"]\n";
        asciicast::parse(text).unwrap()
    }

    #[test]
    fn text_and_json() {
        assert_eq!(plain_text(&recording()), "hi there\n");
        insta::assert_snapshot!(json_lines(&recording()));
    }

    #[test]
    fn waits_follow_speed_and_idle_time() {
        fn check(speed: &str, skip: bool, expect: [u64; 3]) {
            let recording = recording();
            let got: Vec<u128> =
                waits(&recording.moments, speed, skip).map(|(w, _)| w.as_millis()).collect();
            assert_eq!(got, expect.map(u128::from), "{speed} {skip}");
        }
        check("1x", false, [1000, 500, 8000]);
        check("2x", false, [500, 250, 4000]);
        check("0.5x", true, [1000, 1000, 1000]);
    }

    #[tokio::test]
    async fn files_are_played_without_a_login() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.cast");
        std::fs::write(&path, "hello").unwrap();
        let nobody = || Err(Failure::new("not logged in"));
        assert_eq!(load(nobody, path.to_str().unwrap()).await.unwrap(), "hello");
        let failure = load(nobody, "../../etc/x y").await.unwrap_err();
        assert!(failure.message().contains("neither a file"), "{}", failure.message());
    }

    #[test]
    fn a_recording_that_is_not_there_leads_to_the_list() {
        assert!(refused(tonic::Status::not_found("x")).text().contains("tsh recordings ls"));
        assert_eq!(refused(tonic::Status::unknown("x")).text(), "ERROR: x");
    }
}
