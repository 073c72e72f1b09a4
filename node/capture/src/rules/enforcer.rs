//! Which session is under which rules. Rules of the same content are one policy, with a number; entries are written before the
//! first session is under it, and removed when no session is and no program can still be at it. Changing a session's rules is
//! one write, since all entries carry the policy's number.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use ebpf_abi::rules::{RULE_CONTAIN, RULE_NO_DIGEST, RULE_NO_PATH};
use proto::capture_rules::{CaptureRules, ExecRule};

use super::compile::{self, Compiled};
use super::contain;
use super::model::Ruleset;
use super::tables::Tables;
use crate::lock;
use crate::object::{LoadError, Refusal, Take};

/// See the module.
#[derive(Debug)]
pub(crate) struct Enforcer(Mutex<State>);

#[derive(Debug)]
struct State {
    tables: Tables,
    policies: HashMap<u32, Policy>,
    by_content: HashMap<CaptureRules, u32>,
    by_session: HashMap<u64, u32>,
    last: u32,
    before: Before,
}

/// What a node before us has left in the maps.
#[derive(Debug)]
struct Before {
    since: Option<Instant>,
    /// Sessions that stay under what they were under, since their rules cannot be put in force.
    sessions: HashMap<u64, u32>,
    /// Of policies of which there may be records on their way.
    names: HashMap<u32, Arc<[String]>>,
}

#[derive(Debug)]
struct Policy {
    rules: CaptureRules,
    compiled: Compiled,
    names: Arc<[String]>,
    sessions: usize,
    /// Since when there are none.
    idle: Option<Instant>,
}

impl Enforcer {
    pub(crate) fn take(take: Take<'_>) -> Result<Self, LoadError> {
        let tables = Tables::take(take)?;
        // Not those that a node before us gave.
        let last = tables.highest();
        Ok(Self(Mutex::new(State {
            tables,
            policies: HashMap::new(),
            by_content: HashMap::new(),
            by_session: HashMap::new(),
            last,
            before: Before {
                since: Some(Instant::now()),
                sessions: HashMap::new(),
                names: HashMap::new(),
            },
        })))
    }

    /// Puts a session under rules, or under others than before: all of them from one moment on.
    ///
    /// # Errors
    /// There is no room for them; the session is under what it was under before.
    pub(crate) fn assign(&self, session: u64, rules: &CaptureRules) -> io::Result<()> {
        let mut state = self.lock();
        if rules.is_empty() {
            state.free(session);
            return Ok(());
        }
        let number = state.policy(rules)?;
        if state.by_session.get(&session) == Some(&number) {
            return Ok(());
        }
        state.tables.assign(session, number)?;
        if let Some(policy) = state.policies.get_mut(&number) {
            policy.sessions += 1;
            policy.idle = None;
        }
        state.before.sessions.remove(&session);
        if let Some(before) = state.by_session.insert(session, number) {
            state.leave(before);
        }
        Ok(())
    }

    /// Puts a session of a node before us under its rules again. Where that cannot be, it stays under what it is under.
    ///
    /// # Errors
    /// There is no room for them.
    pub(crate) fn adopt(&self, session: u64, rules: Option<&CaptureRules>) -> io::Result<()> {
        let before = self.lock().tables.policy_of(session);
        let done = rules.map_or(Ok(()), |rules| self.assign(session, rules));
        let mut state = self.lock();
        let Some(before) = before else { return done };
        match rules.filter(|_| done.is_ok()) {
            Some(rules) => {
                if rules.is_empty() {
                    state.tables.free(session);
                }
                let names = Ruleset::new(rules, &where_it_leads).names;
                state.before.names.insert(before, names.into());
            }
            None => {
                state.before.sessions.insert(session, before);
            }
        }
        done
    }

    /// Whether a session is under these rules, and no others.
    pub(crate) fn is_under(&self, session: u64, rules: &CaptureRules) -> bool {
        let state = self.lock();
        match state.by_session.get(&session) {
            Some(number) => state.policies.get(number).is_some_and(|policy| policy.rules == *rules),
            None => rules.is_empty() && !state.before.sessions.contains_key(&session),
        }
    }

    /// Whether a session is under any rules.
    pub(crate) fn has(&self, session: u64) -> bool {
        self.lock().by_session.contains_key(&session)
    }

    /// The session is over.
    pub(crate) fn release(&self, session: u64) {
        self.lock().free(session);
    }

    /// Removes the entries of policies that nobody is under any more.
    pub(crate) fn sweep(&self, idle: Duration) {
        let mut state = self.lock();
        if state.before.since.is_some_and(|since| since.elapsed() > idle) {
            state.forget_before();
        }
        let over = |policy: &Policy| policy.idle.is_some_and(|since| since.elapsed() > idle);
        let numbers: Vec<u32> = {
            let idle = state.policies.iter().filter(|(_, policy)| over(policy));
            idle.map(|(number, _)| *number).collect()
        };
        for number in numbers {
            let Some(policy) = state.policies.remove(&number) else { continue };
            state.by_content.remove(&policy.rules);
            state.tables.remove(number, &policy.compiled);
        }
    }

    /// What a rule is called, as the kernel's records number it.
    pub(crate) fn name(&self, policy: u32, rule: u32) -> String {
        let state = self.lock();
        let names = match state.policies.get(&policy) {
            Some(policy) => Some(Arc::clone(&policy.names)),
            None => state.before.names.get(&policy).cloned(),
        };
        drop(state);
        name_of(names.as_deref().unwrap_or_default(), rule)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.0)
    }
}

impl State {
    /// The number of the policy with these rules, whose entries are there.
    fn policy(&mut self, rules: &CaptureRules) -> io::Result<u32> {
        if let Some(number) = self.by_content.get(rules) {
            return Ok(*number);
        }
        // Shifted when it becomes part of a key.
        let number = (self.last + 1) & (u32::MAX >> ebpf_abi::rules::SPACE_BITS);
        let number = number.max(1);
        if self.policies.contains_key(&number) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let set = Ruleset::new(rules, &where_it_leads);
        let compiled = compile::compile(&set, number)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        if let Err(error) = self.tables.put(number, &compiled) {
            self.tables.remove(number, &compiled);
            return Err(error);
        }
        let policy = Policy {
            rules: rules.clone(),
            compiled,
            names: set.names.into(),
            sessions: 0,
            idle: Some(Instant::now()),
        };
        self.last = number;
        self.policies.insert(number, policy);
        self.by_content.insert(rules.clone(), number);
        Ok(number)
    }

    /// Removes what a node before us has left and no session is under any more.
    fn forget_before(&mut self) {
        self.before.since = None;
        self.before.names.clear();
        let Self { tables, policies, by_session, before, .. } = self;
        let has_session =
            |session| by_session.contains_key(&session) || before.sessions.contains_key(&session);
        let has_policy = |policy| {
            policies.contains_key(&policy) || before.sessions.values().any(|kept| *kept == policy)
        };
        let removed = tables.retain(&has_session, &has_policy);
        if removed > 0 {
            tracing::debug!(removed, "entries of rules that a node before this one left");
        }
    }

    fn free(&mut self, session: u64) {
        if self.before.sessions.remove(&session).is_some() {
            self.tables.free(session);
        }
        if let Some(number) = self.by_session.remove(&session) {
            self.tables.free(session);
            self.leave(number);
        }
    }

    fn leave(&mut self, number: u32) {
        if let Some(policy) = self.policies.get_mut(&number) {
            policy.sessions = policy.sessions.saturating_sub(1);
            if policy.sessions == 0 {
                policy.idle = Some(Instant::now());
            }
        }
    }
}

/// A rule's path with every link in it followed, as far as it is there; the kernel compares what a path leads to.
fn where_it_leads(path: &str) -> Option<String> {
    let mut there = std::path::Path::new(path);
    let mut rest = Vec::new();
    let found = loop {
        match there.canonicalize() {
            Ok(found) => break found,
            Err(_) => {
                rest.push(there.file_name()?);
                there = there.parent()?;
            }
        }
    };
    let whole = rest.into_iter().rev().fold(found, |path, part| path.join(part));
    let whole = whole.to_str()?;
    let below = path.ends_with('/') && !whole.ends_with('/');
    Some(if below { format!("{whole}/") } else { whole.to_owned() })
}

/// Of a policy's names, or what the number stands for by itself.
pub fn name_of(names: &[String], rule: u32) -> String {
    match rule {
        0 => return String::new(),
        RULE_NO_DIGEST => return "a program whose digest the kernel does not give".to_owned(),
        RULE_NO_PATH => return "a path that cannot be known".to_owned(),
        _ => {}
    }
    if rule & RULE_CONTAIN != 0 {
        let bit = rule & !RULE_CONTAIN;
        let deed = contain::DEEDS.iter().find(|(known, _)| *known == bit);
        return format!("contain: {}", deed.map_or("?", |(_, name)| name));
    }
    let at = usize::try_from(rule).ok().and_then(|rule| rule.checked_sub(1));
    let name = at.and_then(|at| names.get(at)).cloned();
    name.unwrap_or_else(|| format!("rule {rule}"))
}

/// Why rules cannot be kept on a machine: the first program that they need and that the kernel does not take.
pub(crate) fn missing(
    rules: &CaptureRules,
    coverage: &BTreeMap<String, Result<(), Refusal>>,
) -> Option<String> {
    let set = Ruleset::new(rules, &|_| None);
    let mut needs: Vec<&'static str> = Vec::new();
    for (wanted, programs) in [
        (!set.exec.is_empty(), EXEC),
        (!set.hashes.is_empty(), HASH),
        (!set.write.is_empty(), WRITE),
        (!set.connect.is_empty(), CONNECT),
        (!set.socket.is_empty(), SOCKET),
        (set.contain != 0, CONTAIN),
    ] {
        if wanted {
            needs.extend(programs);
        }
    }
    needs.into_iter().find_map(|name| match coverage.get(name) {
        Some(Ok(())) => None,
        Some(Err(refusal)) => Some(format!("the kernel refuses {name}: {refusal}")),
        None => Some(format!("{name} is not there")),
    })
}

/// Why digests cannot be relied on, whatever the kernel takes: before Linux 6.2 a program that sleeps, as that of digests does
/// while a file is read, is not run for who comes by on the same CPU meanwhile, and what is not run denies nothing.
pub(crate) fn digests_unsure(rules: &CaptureRules, release: &str) -> Option<String> {
    let wanted = rules.deny_exec.iter().any(|rule| matches!(rule, ExecRule::Sha256(_)));
    let unsure = wanted && is_before(release, (6, 2));
    unsure.then(|| format!("Linux {} checks a digest not always, 6.2 does", release.trim()))
}

/// Whether a kernel is older than that; one that does not say may be.
pub(crate) fn is_before(release: &str, wanted: (u32, u32)) -> bool {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse().ok());
    let version: Option<(u32, u32)> = numbers.next().flatten().zip(numbers.next().flatten());
    version.is_none_or(|version| version < wanted)
}

/// The programs without which rules of a kind would have holes.
const EXEC: &[&str] =
    &["enforce_bprm_check_security", "enforce_file_mprotect", "enforce_mmap_file"];
const HASH: &[&str] = &["enforce_bprm_check_security__sha256"];
const WRITE: &[&str] = &[
    "enforce_file_open",
    "enforce_path_chmod",
    "enforce_path_chown",
    "enforce_path_link",
    "enforce_path_mkdir",
    "enforce_path_mknod",
    "enforce_path_rename",
    "enforce_path_rmdir",
    "enforce_path_symlink",
    "enforce_path_truncate",
    "enforce_path_unlink",
];
const CONNECT: &[&str] = &["enforce_socket_connect", "enforce_socket_sendmsg"];
const SOCKET: &[&str] = &["enforce_unix_may_send", "enforce_unix_stream_connect"];
const CONTAIN: &[&str] = &[
    "enforce_bpf",
    "enforce_file_send_sigiotask",
    "enforce_kernel_load_data",
    "enforce_kernel_module_request",
    "enforce_kernel_read_file",
    "enforce_move_mount",
    "enforce_ptrace_access_check",
    "enforce_sb_mount",
    "enforce_sb_pivotroot",
    "enforce_sb_umount",
    "enforce_task_kill",
    "enforce_task_setnice",
    "enforce_task_setrlimit",
    "enforce_task_setscheduler",
];

/// A program of the kernel's that has read a session's policy must still find its entries; records on their way want its names.
pub(crate) const KEEP_IDLE: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use aya::maps::{Map, MapData};

    use super::*;

    fn rules(json: &str) -> CaptureRules {
        serde_json::from_str(json).unwrap()
    }

    /// Needs the right to make maps.
    #[test]
    fn what_a_node_before_has_left_goes_and_what_is_used_stays() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let mut loader = aya::EbpfLoader::new();
        let ebpf = loader.allow_unsupported_maps().load(crate::object::PROGRAMS).unwrap();
        let again = |name: &'static str| {
            let (Map::Array(data) | Map::HashMap(data) | Map::LpmTrie(data)) =
                ebpf.map(name).unwrap()
            else {
                panic!("{name}")
            };
            let id = data.info().unwrap().id();
            Ok(Map::from_map_data(MapData::from_id(id)?)?)
        };
        let take = || Enforcer::take(&mut |name| again(name)).unwrap();
        let count = |enforcer: &Enforcer| enforcer.lock().tables.count();
        let text = r#"{"mode":"audit","deny_open_write":["/a/b"],"deny_connect":["::/0"]}"#;
        let (used, old) = (rules(text), rules(r#"{"mode":"audit","deny_exec":["/old"]}"#));
        let before = take();
        before.assign(1, &used).unwrap();
        let of_one = count(&before);
        before.assign(2, &old).unwrap();
        before.assign(3, &old).unwrap();
        let all_of_it = count(&before);
        drop(before);
        // 1 goes on, nobody knows 2 any more, and the rules of 3 cannot be read.
        let next = take();
        next.adopt(1, Some(&used)).unwrap();
        next.adopt(3, None).unwrap();
        assert_eq!(next.name(1, 1), name_of(&Ruleset::new(&used, &|_| None).names, 1));
        next.sweep(Duration::from_secs(3600));
        assert!(count(&next) > all_of_it);
        next.sweep(Duration::ZERO);
        assert_eq!(count(&next), all_of_it - 1);
        assert!(next.is_under(1, &used));
        // Its roles can be asked again.
        assert!(!next.is_under(3, &CaptureRules::default()));
        next.assign(3, &CaptureRules::default()).unwrap();
        next.sweep(Duration::ZERO);
        drop(next);
        let last = take();
        last.adopt(1, Some(&used)).unwrap();
        last.sweep(Duration::ZERO);
        assert_eq!(count(&last), of_one);
    }

    #[test]
    fn rules_are_not_kept_by_halves() {
        let every = [EXEC, HASH, WRITE, CONNECT, SOCKET, CONTAIN].concat();
        let coverage = |without: &str| -> BTreeMap<_, _> {
            let there = every.iter().filter(|name| **name != without);
            there.map(|name| ((*name).to_owned(), Ok(()))).collect()
        };
        let check = |json: &str, without: &str, expect: bool| {
            let coverage = coverage(without);
            assert_eq!(missing(&rules(json), &coverage).is_some(), expect, "{json} {without}");
        };
        let hash = format!(r#"{{"deny_exec":["sha256:{}"]}}"#, "00".repeat(32));
        check(r#"{"deny_exec":["/a"]}"#, "enforce_mmap_file", true);
        check(r#"{"deny_exec":["/a"]}"#, "enforce_bprm_check_security__sha256", false);
        check(&hash, "enforce_bprm_check_security__sha256", true);
        check(&hash, "enforce_mmap_file", false);
        check(r#"{"deny_open_write":["/a"]}"#, "enforce_path_rename", true);
        check(r#"{"deny_connect":["::/0"]}"#, "enforce_socket_sendmsg", true);
        check(r#"{"contain":true}"#, "enforce_bpf", true);
        check(r#"{"contain":true}"#, "enforce_path_rename", true);
        check(r#"{"contain":true}"#, "enforce_socket_connect", false);
        check("{}", "enforce_bpf", false);
    }

    #[test]
    fn digests_are_for_kernels_that_do_not_pass_programs_over() {
        let hash = format!(r#"{{"deny_exec":["sha256:{}"]}}"#, "00".repeat(32));
        let unsure = |json: &str, release| digests_unsure(&rules(json), release).is_some();
        assert!(unsure(&hash, "6.1.0-56-cloud-amd64\n"));
        assert!(unsure(&hash, "5.15"));
        assert!(unsure(&hash, ""));
        assert!(!unsure(&hash, "6.12.117+deb12-cloud-amd64"));
        assert!(!unsure(&hash, "7.0.1"));
        assert!(!unsure(r#"{"deny_exec":["/a"]}"#, "6.1"));
    }

    #[test]
    fn links_are_followed_as_far_as_they_lead() {
        let folder = std::env::temp_dir().join(format!("postern-rules-{}", std::process::id()));
        std::fs::create_dir_all(folder.join("real")).unwrap();
        drop(std::fs::remove_file(folder.join("link")));
        std::os::unix::fs::symlink("real", folder.join("link")).unwrap();
        let base = folder.canonicalize().unwrap();
        let check = |path: &str, expect: &str| {
            let found = where_it_leads(&format!("{}/{path}", folder.display()));
            assert_eq!(found, Some(format!("{}/{expect}", base.display())));
        };
        check("link/", "real/");
        check("link/not/there", "real/not/there");
        check("link/not/there/", "real/not/there/");
        check("link", "real");
        std::fs::remove_dir_all(folder).unwrap();
        assert_eq!(where_it_leads("/"), Some("/".to_owned()));
    }
}
