//! A real terminal whose size changes while a shell runs, for ssh and for tsh alike.

use std::fs;

use crate::cluster::{NODE, at, shared};
use crate::run::{Run, program};

/// Runs `argv` on a terminal of 24 x 80, asks the far side for its size, makes it 50 x 132, asks again.
const RESIZE: &str = r#"
import fcntl, os, pty, select, struct, sys, termios, time
def size(fd, rows, columns):
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
def until(fd, text):
    seen, end = b"", time.time() + 30
    while text not in seen:
        assert select.select([fd], [], [], end - time.time())[0], seen
        seen += os.read(fd, 65536)
pid, fd = pty.fork()
if pid == 0:
    while os.get_terminal_size(0).lines != 24: time.sleep(0.01)
    os.execvp(sys.argv[1], sys.argv[1:])
size(fd, 24, 80)
os.write(fd, b"echo ready-$((1+1))\n")
until(fd, b"ready-2")
os.write(fd, b"stty size\n")
until(fd, b"24 80")
size(fd, 50, 132)
# The change travels beside what is typed: ask until it has arrived.
for _ in range(100):
    os.write(fd, b"stty size; echo asked-$((1+1))\n")
    seen = b""
    while b"asked-2" not in seen:
        seen += os.read(fd, 65536)
    if b"50 132" in seen:
        break
else:
    sys.exit("the new size did not arrive")
os.write(fd, b"exit 6\n")
try:
    while os.read(fd, 65536): pass
except OSError: pass
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"#;

#[test]
fn a_terminal_that_is_resized() {
    let cluster = shared();
    let user = cluster.user("resize", "access-all", "root");
    let config = cluster.ssh_config(&user);
    let tsh = program("tsh");
    let by_ssh = ["ssh", "-F", config.to_str().unwrap(), &at("root")].map(str::to_owned);
    let by_tsh = [tsh.to_str().unwrap(), "ssh", &format!("root@{NODE}")].map(str::to_owned);
    for argv in [by_ssh.as_slice(), by_tsh.as_slice()] {
        let run = Run::new("/usr/bin/python3")
            .args(["-c", RESIZE])
            .args(argv)
            .env("TELEPORT_HOME", &user.home)
            .wait();
        assert_eq!(run.code, 6, "{argv:?}: {run:?}");
    }
    let event = cluster.event("resize", |e| e["user"] == "resize" && e["size"] == "132:50");
    let sid = event["sid"].as_str().unwrap();
    cluster.event("session.upload", |e| e["sid"] == sid);
    let cast = cluster.path().join("bastion/auth/recordings").join(format!("{sid}.cast"));
    let text = fs::read_to_string(cast).unwrap();
    assert!(
        text.lines()
            .any(|line| line.contains(r#""r", "132x50""#) || line.contains(r#""r","132x50""#))
    );
}
