//! What was told of a session, and whether that is enough: an event of the right kind with the right path or address is
//! *seen*; one that also names the right process is *attributed*. The session is right by itself: each has a sink of its own.

use serde_json::Value;

use super::stage::Facts;

/// A session that is over, or whose first process is.
#[derive(Debug)]
pub(super) struct Told {
    pub(super) events: Vec<Value>,
    /// The first process.
    pub(super) leader: u32,
    /// What it said of itself.
    pub(super) facts: Facts,
    pub(super) sid: String,
}

impl Told {
    /// The events of a type.
    pub(super) fn of(&self, event: &str) -> impl Iterator<Item = &Value> {
        self.events.iter().filter(move |told| told["event"] == event)
    }

    fn expect(&self, event: &str, what: String) -> Expect<'_> {
        Expect { what, candidates: self.of(event).collect(), by: vec![self.leader] }
    }

    pub(super) fn command(&self, path: &str) -> Expect<'_> {
        self.expect("session.command", format!("program {}", last(path))).with("path", path)
    }

    /// One of these operations, since what opens a file and what makes it is not the same to each kernel.
    pub(super) fn disk(&self, ops: &[&str], path: &str) -> Expect<'_> {
        let what = format!("{} {}", ops.first().unwrap(), last(path));
        let ops: Vec<Value> = ops.iter().map(|op| Value::from(*op)).collect();
        let any = self.expect("session.disk", what).that(|event| ops.contains(&event["op"]));
        any.that(|event| is_path(event, path))
    }

    pub(super) fn any_disk(&self) -> Expect<'_> {
        self.expect("session.disk", "file".to_owned())
    }

    pub(super) fn opened(&self, path: &str) -> Expect<'_> {
        self.disk(&["open", "create", "write"], path)
    }

    pub(super) fn network(&self, op: &str, protocol: &str) -> Expect<'_> {
        let any = self.expect("session.network", format!("{protocol} {op}"));
        any.with("op", op).with("protocol", protocol)
    }

    pub(super) fn name(&self, name: &str) -> Expect<'_> {
        self.expect("session.dns", "name".to_owned()).with("name", name)
    }

    pub(super) fn privilege(&self, op: &str) -> Expect<'_> {
        self.expect("session.privilege", format!("rights {op}")).with("op", op)
    }

    pub(super) fn kernel(&self, op: &str) -> Expect<'_> {
        self.expect("session.kernel", format!("kernel {op}")).with("op", op)
    }

    /// The kernel asks for memory and descriptors of another process as for `ptrace`, so that this is as good.
    pub(super) fn trace(&self, op: &str, target: u32) -> Expect<'_> {
        let any = self.expect("session.trace", format!("process {op}"));
        any.that(|event| event["op"] == op || event["op"] == "ptrace").with("target_pid", target)
    }

    pub(super) fn any_delegation(&self, via: &str) -> Expect<'_> {
        self.expect("session.delegation", format!("delegation {via}")).with("via", via)
    }

    /// Whom it leads to may be known already, or not yet.
    pub(super) fn delegation(&self, via: &str, path: &str) -> Expect<'_> {
        let any = self.expect("session.delegation", format!("delegation {via} {}", last(path)));
        any.with("via", via).with("path", path)
    }

    pub(super) fn detached(&self) -> Found {
        Found::whole("detached", self.of("session.detached").next().is_some())
    }

    pub(super) fn ended(&self, signal: i32) -> Expect<'_> {
        let any = self.expect("session.command.exit", format!("end by signal {signal}"));
        any.with("signal", signal)
    }

    /// Records of a class that were lost, as far as that is told.
    pub(super) fn lost(&self, class: &str) -> u64 {
        let losses = self.of("session.loss").filter(|loss| loss["class"] == class);
        losses.filter_map(|loss| loss["count"].as_u64()).sum()
    }

    /// What [`super::deed::Deed::afterwards`] does: what a session does after it has tried to get away.
    pub(super) fn afterwards(&self, by: u32) -> Vec<Found> {
        let program = self.facts.number("after-pid");
        vec![
            self.opened(&self.facts.text("after-file")).by(by).found(),
            self.command(&self.facts.text("after-program")).by(program).found(),
        ]
    }
}

/// Events that would do.
#[derive(Debug)]
pub(super) struct Expect<'t> {
    what: String,
    candidates: Vec<&'t Value>,
    by: Vec<u32>,
}

impl Expect<'_> {
    pub(super) fn with(self, field: &str, value: impl Into<Value>) -> Self {
        let value = value.into();
        self.that(|event| event[field] == value)
    }

    pub(super) fn that(mut self, fits: impl Fn(&Value) -> bool) -> Self {
        self.candidates.retain(|event| fits(event));
        self
    }

    /// Says what it is about more precisely.
    pub(super) fn named(mut self, what: &str) -> Self {
        what.clone_into(&mut self.what);
        self
    }

    /// Whose doing it is, where it is not the first process'.
    pub(super) fn by(mut self, pid: u32) -> Self {
        self.by = vec![pid];
        self
    }

    /// Which process it is cannot be said before.
    pub(super) fn by_any(mut self) -> Self {
        let pids = self.candidates.iter().filter_map(|event| event["pid"].as_u64());
        self.by = pids.filter_map(|pid| pid.try_into().ok()).collect();
        self
    }

    /// The other process is this one.
    pub(super) fn to(mut self, pid: u32) -> Found {
        let right = |event: &&Value| event["target_pid"] == pid || event["pid"] == pid;
        let seen = !self.candidates.is_empty();
        self.candidates.retain(right);
        Found { what: self.what, seen, attributed: !self.candidates.is_empty() }
    }

    pub(super) fn found(self) -> Found {
        let by: Vec<Value> = self.by.iter().map(|pid| Value::from(*pid)).collect();
        let right = |event: &&Value| {
            by.contains(&event["pid"]) && event["program"].as_str().is_some_and(|p| !p.is_empty())
        };
        let attributed = self.candidates.iter().any(right);
        Found { what: self.what, seen: !self.candidates.is_empty(), attributed }
    }
}

/// A thing that a deed did, and what is known of it.
#[derive(Debug)]
pub(super) struct Found {
    what: String,
    seen: bool,
    attributed: bool,
}

impl Found {
    /// What is about a session as a whole.
    pub(super) fn whole(what: &str, is_told: bool) -> Self {
        Self { what: what.to_owned(), seen: is_told, attributed: is_told }
    }

    pub(super) fn is_seen(&self) -> bool {
        self.seen
    }

    /// Either will do.
    pub(super) fn or(self, other: Self) -> Self {
        let (seen, attributed) = (self.seen || other.seen, self.attributed || other.attributed);
        Self { what: self.what, seen, attributed }
    }
}

/// What came of a case. Neither seen nor unseen: the deed was not done.
#[derive(Debug)]
pub(super) struct Verdict {
    pub(super) seen: Option<bool>,
    pub(super) attributed: Option<bool>,
    pub(super) note: String,
    /// The deed went wrong in a way that nothing excuses.
    pub(super) mistake: Option<String>,
}

impl Verdict {
    pub(super) fn not_played(why: &str) -> Self {
        Self { seen: None, attributed: None, note: why.to_owned(), mistake: None }
    }

    pub(super) fn explain(&mut self, why: &str) {
        if !self.note.is_empty() {
            self.note.push_str("; ");
        }
        self.note.push_str(why);
    }

    /// All that was done has to be told.
    pub(super) fn of(found: &[Found], impossible: &[String], mistakes: &[String]) -> Self {
        let names = |wanted: &dyn Fn(&Found) -> bool| {
            let names: Vec<&str> =
                found.iter().filter(|f| wanted(f)).map(|f| f.what.as_str()).collect();
            names.join(", ")
        };
        let unseen = names(&|found| !found.seen);
        let stray = names(&|found| found.seen && !found.attributed);
        let mut notes = impossible.iter().map(|why| format!("not possible here: {why}")).collect();
        let mut note = |what: &str, names: &str| {
            if !names.is_empty() {
                Vec::push(&mut notes, format!("{what}: {names}"));
            }
        };
        note("not seen", &unseen);
        note("not attributed", &stray);
        let is_done = !found.is_empty();
        Self {
            seen: is_done.then_some(unseen.is_empty()),
            attributed: is_done.then_some(unseen.is_empty() && stray.is_empty()),
            note: notes.join("; "),
            mistake: (!mistakes.is_empty()).then(|| mistakes.join("; ")),
        }
    }
}

/// Some hooks know a path only from the root of its file system, and say so.
fn is_path(event: &Value, path: &str) -> bool {
    let told = event["path"].as_str().unwrap_or_default();
    let is_end = event["path_cut"] == true && told.len() > 1 && told.starts_with('/');
    told == path || is_end && path.ends_with(told)
}

fn last(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}
