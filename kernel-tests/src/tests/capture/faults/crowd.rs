//! More sessions than a machine ever has: each with a process that does one thing, which is told in that session and in no other.
//! And one more than there is room for.

use std::fs;
use std::io;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use capture::{Capture, Sink, Wanted, Watch};
use proto::capture_rules::CaptureRules;

use super::super::deed::busybox;
use super::super::stage::Memory;
use super::{Room, Told, until, wait};

const SESSIONS: usize = 10_000;
/// So many do something at the same time.
const GROUP: usize = 2000;

pub(super) fn thousands_of_sessions_are_told_apart() {
    let Some(room) = Room::open("crowd") else { return };
    let (waiting, mut go): (Vec<_>, Vec<_>) =
        (0..SESSIONS / GROUP).map(|_| io::pipe().unwrap()).unzip();
    let begin = |number: usize| -> (Arc<Memory>, Watch, Child) {
        let memory = Arc::new(Memory::new([202, 0]));
        let mut watch = super::watch(&room.stage, &memory);
        // Waits until all are there and it is its turn, then makes a file.
        let mut command = Command::new(busybox());
        command.args(["sh", "-c", &format!("read -r word; : >made-{number}")]);
        command
            .stdin(waiting[number / GROUP].try_clone().unwrap())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        command.env_clear().current_dir(&room.folder);
        let child = watch.spawn(&mut command).unwrap();
        (memory, watch, child)
    };
    let mut all: Vec<_> = (0..SESSIONS).map(begin).collect();
    assert_eq!(room.stage.capture.totals().sessions, SESSIONS as u64);
    for group in all.chunks_mut(GROUP).rev() {
        drop(go.pop());
        for (_, _, child) in group {
            wait(child);
        }
    }
    let is_told = |memory: &Memory| Told(memory.events()).of("session.capture").next().is_some();
    for (number, (memory, _, child)) in all.iter().enumerate() {
        crate::at(format!("session {number}"));
        until("end of the session", || is_told(memory));
        let told = Told(memory.events());
        let path = |number: usize| room.folder.join(format!("made-{number}")).display().to_string();
        // Whose it is stands in the session that it was told in.
        let made: Vec<_> = told.of("session.disk").filter(|event| event["op"] != "open").collect();
        assert!(!made.is_empty(), "nothing was told");
        for event in made {
            let told = event["path"].as_str().unwrap();
            assert!(path(number).ends_with(told.trim_start_matches('/')), "{event}");
            assert_eq!(event["pid"], child.id());
        }
        let ends = told.of("session.command.exit").filter(|end| end["pid"] == child.id());
        assert_eq!(ends.count(), 1);
        assert_eq!(told.lost(), 0, "{:?}", told.of("session.loss").collect::<Vec<_>>());
    }
    assert_eq!(fs::read_dir(&room.folder).unwrap().count(), SESSIONS);
}

/// What there is no room for is refused, and said so; when another is gone, there is room.
pub(super) fn one_session_too_many_is_refused() {
    let Some(room) = Room::open("too-many") else { return };
    let capture: &Capture = &room.stage.capture;
    let sink: Arc<dyn Sink> = Arc::new(Memory::new([203, 0]));
    let watch = || {
        let rules = CaptureRules::default();
        let wanted = Wanted { command: true, disk: true, network: true, strict: false, rules };
        let _runtime = room.stage.runtime.enter();
        capture.watch(&sink, wanted)
    };
    let mut all: Vec<Watch> =
        (0..ebpf_abi::SESSIONS_MAX).map(|_| watch().unwrap().unwrap()).collect();
    let refused = watch().unwrap_err().to_string();
    assert!(refused.contains(&ebpf_abi::SESSIONS_MAX.to_string()), "{refused}");
    drop(all.pop());
    all.push(watch().unwrap().unwrap());
    watch().unwrap_err();
}
