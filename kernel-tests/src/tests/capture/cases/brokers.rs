//! Through services that start programs for others, through the kernel's own helpers, and through other sessions. The
//! services are small stand-ins that act as the real ones do, outside of the session.

use std::ffi::OsStr;
use std::fs;
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Command, Stdio};

use super::super::deed::{Deed, forked, run_true, until};
use super::super::stage::{Scene, find};
use super::super::told::Found;
use super::{Case, Play};

pub(super) const CASES: &[Case] = &[
    Case {
        number: 29,
        name: "systemd-run, at, cron, ssh localhost",
        play: Play::Here(services),
        deed: do_services,
    },
    Case { number: 30, name: "core_pattern", play: Play::InGuest(helper), deed: do_helper },
    Case {
        number: 31,
        name: "LD_PRELOAD, PAM module, authorized_keys, unit file: drop, then trigger",
        play: Play::Here(dropped),
        deed: do_drop,
    },
    Case {
        number: 45,
        name: "session A writes, session B executes",
        play: Play::Here(two),
        deed: do_two,
    },
];

const SYSTEMD: &str = "/run/systemd/private";
const AT: &str = "/var/spool/cron/atjobs/a00001";
const CRON: &str = "/etc/cron.d/bypass";

fn services(scene: &Scene<'_>) -> Vec<Found> {
    for path in [SYSTEMD, AT, CRON] {
        fs::create_dir_all(Path::new(path).parent().unwrap()).unwrap();
    }
    let services = scene.outside("services");
    let running = scene.start("");
    // As cron does when the minute is over: it runs what the table says.
    let job = running.fact("job");
    let cron = scene.afterwards("cron");
    let told = running.end();
    let started = cron.all().number("started");
    vec![
        told.delegation("systemd", SYSTEMD).to(services.pid),
        told.delegation("at", AT).found(),
        told.delegation("cron", CRON).found(),
        told.delegation("ssh", "127.0.0.1:22").found(),
        told.delegation("file", &job).by_any().to(started),
        told.command(&job).by(started).found(),
    ]
}

fn do_services(deed: &Deed, part: &str) {
    match part {
        "services" => {
            // Of a try before this one.
            fs::remove_file(SYSTEMD).ok();
            let _systemd = UnixListener::bind(SYSTEMD).unwrap();
            // On a machine with an sshd that one is as good.
            let _ssh = TcpListener::bind("127.0.0.1:22");
            deed.ready_forever();
        }
        "cron" => {
            let job = fs::read_to_string(CRON).unwrap();
            deed.tell("started", run_true(job.trim_end().as_ref()));
        }
        _ => {
            // By another name: what counts is whose socket it is.
            let link = deed.path("link");
            std::os::unix::fs::symlink(SYSTEMD, &link).unwrap();
            drop(UnixStream::connect(link).unwrap());
            drop(TcpStream::connect("127.0.0.1:22").unwrap());
            fs::write(AT, "#!/bin/sh\n").unwrap();
            let job = deed.program("job");
            fs::write(CRON, job.to_str().unwrap()).unwrap();
            deed.tell("job", job.display());
        }
    }
}

const CORE_PATTERN: &str = "/proc/sys/kernel/core_pattern";

fn helper(scene: &Scene<'_>) -> Vec<Found> {
    let before = fs::read_to_string(CORE_PATTERN).unwrap();
    let told = scene.session("");
    fs::write(CORE_PATTERN, before).unwrap();
    let helper = scene.text("helper");
    vec![
        told.opened(CORE_PATTERN).found(),
        told.delegation("helper", CORE_PATTERN).found(),
        told.command(&helper).by_any().found(),
    ]
}

/// The kernel gives the core of a process that crashes to a program of the session's.
fn do_helper(deed: &Deed, _: &str) {
    let helper = deed.program("helper");
    fs::write(
        CORE_PATTERN,
        format!("|{} cp /proc/self/comm {}", helper.display(), deed.path("crashed").display()),
    )
    .unwrap();
    // Busybox looks at its own name for what to do.
    let crash = forked(|| std::process::abort());
    crate::sys::process::wait(crash).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(100));
}

const DROPPED: &[(&str, &str)] = &[
    ("preload", "/etc/ld.so.preload"),
    ("pam", "/etc/pam.d/bypass"),
    ("ssh", "/root/.ssh/authorized_keys"),
    ("systemd", "/etc/systemd/system/bypass.service"),
];

fn dropped(scene: &Scene<'_>) -> Vec<Found> {
    for (_, path) in DROPPED {
        fs::create_dir_all(Path::new(path).parent().unwrap()).unwrap();
    }
    let running = scene.start("");
    let [service, library] = ["service", "library"].map(|key| running.fact(key));
    // The services do what the files say when the session is long over.
    let trigger = scene.afterwards("trigger");
    let told = running.end();
    for (_, path) in DROPPED {
        fs::remove_file(path).unwrap();
    }
    let facts = trigger.all();
    let mut found: Vec<_> =
        DROPPED.iter().map(|(via, path)| told.delegation(via, path).found()).collect();
    found.push(told.delegation("file", &service).to(facts.number("service")));
    found.push(told.delegation("file", &library).to(facts.number("library")));
    found
}

fn do_drop(deed: &Deed, part: &str) {
    let library = deed.path("library.so");
    if part == "trigger" {
        deed.tell("service", run_true(&deed.path("service")));
        let mut command = Command::new(find("openssl").unwrap());
        let command = command.arg("version").env("LD_PRELOAD", &library).stdout(Stdio::null());
        let mut child = command.spawn().unwrap();
        deed.tell("library", child.id());
        child.wait().unwrap();
        return;
    }
    for (name, path) in DROPPED {
        // The preload of all programs stays empty: others run here, too.
        fs::write(path, if *name == "preload" { "" } else { "dropped\n" }).unwrap();
    }
    deed.tell("service", deed.program("service").display());
    fs::copy(a_library(), &library).unwrap();
    deed.tell("library", library.display());
}

/// Any library that may be loaded beside others.
fn a_library() -> std::path::PathBuf {
    let folders = ["/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu", "/lib64"];
    let files = folders.iter().flat_map(|folder| fs::read_dir(folder).into_iter().flatten());
    let paths = files.filter_map(|entry| Some(entry.ok()?.path()));
    let is_ssl = |path: &std::path::PathBuf| {
        path.file_name().and_then(OsStr::to_str).is_some_and(|name| name.starts_with("libssl.so"))
    };
    paths.into_iter().find(is_ssl).unwrap()
}

fn two(scene: &Scene<'_>) -> Vec<Found> {
    let running = scene.start("writer");
    let shared = running.fact("shared");
    let executer = scene.session("executer");
    fs::write(scene.path("over"), "").unwrap();
    let writer = running.end();
    let pid = executer.facts.number("executed");
    vec![
        executer.command(&shared).by(pid).found(),
        writer.delegation("file", &shared).with("target_sid", executer.sid.as_str()).to(pid),
    ]
}

fn do_two(deed: &Deed, part: &str) {
    if part == "writer" {
        let shared = deed.program("shared");
        deed.tell("shared", shared.display());
        until("other session's end", || deed.path("over").exists());
        return;
    }
    deed.tell("executed", run_true(&deed.path("shared")));
}
