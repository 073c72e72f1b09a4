//! Through other processes: their memory, their descriptors, their system calls.

use std::fs::{self, File, OpenOptions};
use std::io::{IoSlice, IoSliceMut, Read as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::fs::FileExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use capture::Tier;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

use super::super::deed::{Deed, forked, until};
use super::super::stage::Scene;
use super::super::told::Found;
use super::{Case, Play};
use crate::sys::{process, watch};

pub(super) const CASES: &[Case] = &[
    Case {
        number: 27,
        name: "ptrace, /proc/pid/mem, process_vm_writev",
        play: Play::Here(injected),
        deed: do_inject,
    },
    Case {
        number: 28,
        name: "SCM_RIGHTS, pidfd_getfd",
        play: Play::Here(received),
        deed: do_receive,
    },
    Case {
        number: 43,
        name: "seccomp supervisor acting for its child",
        play: Play::Here(supervised),
        deed: do_supervise,
    },
];

fn injected(scene: &Scene<'_>) -> Vec<Found> {
    let victim = scene.outside("victim");
    let told = scene.session("");
    // Each has a process for itself, so that one is not taken for the other.
    let by = |fact: &str| told.facts.number(fact);
    let hijacked = scene.text("hijacked");
    // Only where the kernel is asked before, a process that is taken hold of becomes the session's.
    let adopted = (scene.tier() == Some(Tier::A))
        .then(|| told.disk(&["create"], &hijacked).by(victim.pid).found());
    let mut found = vec![
        told.trace("ptrace", victim.pid).by(by("ptrace")).found(),
        told.trace("memory", victim.pid).named("/proc/pid/mem").by(by("mem")).found(),
        told.trace("memory", victim.pid).named("process_vm_writev").by(by("vm")).found(),
        told.any_delegation("ptrace").with("target_pid", victim.pid).by_any().found(),
    ];
    found.extend(adopted);
    found
}

fn do_inject(deed: &Deed, part: &str) {
    static WORD: AtomicU64 = AtomicU64::new(0);
    if part == "victim" {
        deed.tell("address", WORD.as_ptr().addr());
        // Not the thread that is written to.
        let path = deed.path("hijacked");
        thread::spawn(move || {
            while WORD.load(Ordering::Relaxed) != 3 {
                thread::sleep(Duration::from_millis(5));
            }
            File::create(path).unwrap();
        });
        deed.tell_pid("pid");
        deed.ready_forever();
    }
    let victim: u32 = deed.heard("victim", "pid");
    let address: u64 = deed.heard("victim", "address");
    let step = |name: &str, deed_itself: &dyn Fn()| {
        deed.tell(name, super::super::deed::forked_to_end(deed_itself));
    };
    step("mem", &|| {
        let memory = OpenOptions::new().write(true).open(format!("/proc/{victim}/mem")).unwrap();
        memory.write_all_at(&[1; 8], address).unwrap();
    });
    step("vm", &|| process::write_memory(victim, address, &[2; 8]).unwrap());
    step("ptrace", &|| process::inject(victim, address, 3).unwrap());
    until("hijacked file", || deed.path("hijacked").exists());
}

fn received(scene: &Scene<'_>) -> Vec<Found> {
    fs::write(scene.path("sent"), "x").unwrap();
    let sender = scene.outside("sender");
    let told = scene.session("");
    vec![
        told.disk(&["receive"], &scene.text("sent")).found(),
        told.trace("descriptor", sender.pid).found(),
    ]
}

/// A process outside of the session has a file open: it is sent, and it is fetched.
fn do_receive(deed: &Deed, part: &str) {
    if part == "sender" {
        let file = File::open(deed.path("sent")).unwrap();
        let listener = UnixListener::bind(deed.path("socket")).unwrap();
        deed.tell("file", file.as_raw_fd());
        deed.tell_pid("pid");
        deed.tell("ready", "");
        let (stream, _) = listener.accept().unwrap();
        let files = [file.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(control.push(SendAncillaryMessage::ScmRights(&files)));
        sendmsg(&stream, &[IoSlice::new(b"x")], &mut control, SendFlags::empty()).unwrap();
        deed.ready_forever();
    }
    let stream = UnixStream::connect(deed.path("socket")).unwrap();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    recvmsg(&stream, &mut [IoSliceMut::new(&mut byte)], &mut control, RecvFlags::empty()).unwrap();
    let files: Vec<OwnedFd> = control
        .drain()
        .flat_map(|message| match message {
            RecvAncillaryMessage::ScmRights(files) => files.collect::<Vec<_>>(),
            _ => Vec::new(),
        })
        .collect();
    let mut said = String::new();
    File::from(files.into_iter().next().unwrap()).read_to_string(&mut said).unwrap();
    let sender = Pid::from_raw(deed.heard("sender", "pid")).unwrap();
    let sender = pidfd_open(sender, PidfdFlags::empty()).unwrap();
    let file = deed.heard("sender", "file");
    drop(pidfd_getfd(sender, file, PidfdGetfdFlags::empty()).unwrap());
}

fn supervised(scene: &Scene<'_>) -> Vec<Found> {
    let told = scene.session("");
    vec![told.disk(&["mkdir"], &scene.text("made")).found()]
}

/// The child asks for a folder, and the parent makes another.
fn do_supervise(deed: &Deed, _: &str) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let child = forked(|| {
        let listener = watch::ask_for(libc::SYS_mkdir).unwrap();
        rustix::io::write(&theirs, &listener.to_ne_bytes()).unwrap();
        fs::create_dir(deed.path("asked")).unwrap();
    });
    drop(theirs);
    let mut number = [0; 4];
    (&ours).read_exact(&mut number).unwrap();
    let child_file =
        pidfd_open(Pid::from_raw(child.cast_signed()).unwrap(), PidfdFlags::empty()).unwrap();
    let listener =
        pidfd_getfd(child_file, i32::from_ne_bytes(number), PidfdGetfdFlags::empty()).unwrap();
    watch::answer_one(listener.as_fd(), || fs::create_dir(deed.path("made")).unwrap()).unwrap();
    assert_eq!(process::wait(child).unwrap(), 0);
    assert!(!deed.path("asked").exists());
}
