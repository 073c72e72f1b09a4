//! Rules of sessions, kept by the kernel: tables of deeds, whose outcome the model foretells and the kernel gives. Where the
//! kernel takes no LSM programs, a session with such rules is refused.
//!
//! - [`deeds`]: what a session does
//! - [`stage`]: a session with rules, and what is told of it
//! - [`tables`]: deeds, and what they are in the words of the model

pub(crate) mod deeds;
mod stage;
mod tables;

use std::fs;
use std::sync::OnceLock;

use capture::Tier;
use capture::rules::model::{Action, Deed, Path, Ruleset};
use ebpf_abi::rules::contain;
use proto::capture_rules::CaptureRules;

use self::stage::{Session, Stage};
use self::tables::{CONTAINED, Case, FILES, MODULES, NETWORK, PROGRAMS};

crate::tests![
    what_the_model_says_happens,
    a_kill_ends_the_process,
    digests_are_known_by_any_name,
    rules_change_while_a_session_runs,
    sessions_have_their_own_rules,
    nobody_outside_is_kept_from_anything,
    nobody_has_the_node_told_by_a_signal,
    what_is_turned_off_is_turned_on_again,
];

/// The stage, where there is one; where not, it is tested that rules are refused.
fn stage() -> Option<&'static Stage> {
    // One for all: an emulated machine takes long to load it.
    static STAGE: OnceLock<Stage> = OnceLock::new();
    let stage = STAGE.get_or_init(Stage::new);
    if stage.tier() == Some(Tier::A) {
        return Some(stage);
    }
    let asks = fs::read_to_string("/proc/cmdline").unwrap().contains(",bpf");
    assert!(!asks, "a kernel that asks LSM programs takes them: {:?}", stage.tier());
    let refused = stage.watch(&rules(r#"{"deny_exec":["/x"]}"#)).unwrap_err();
    assert!(refused.to_string().contains("capture_rules"), "{refused}");
    stage.watch(&rules(r#"{"deny_exec":["/x"],"mode":"audit"}"#)).unwrap();
    crate::not_here("the kernel takes no LSM programs");
    None
}

fn rules(json: &str) -> CaptureRules {
    serde_json::from_str(json).unwrap()
}

/// The first of a case's deeds that comes under a rule, and what is expected to be told of it.
fn foretold(set: &Ruleset, case: &Case) -> Vec<(Action, u32)> {
    let mut told = Vec::new();
    for deed in case.deeds {
        let decision = set.decide(*deed);
        match decision.action {
            Action::Allow => {}
            Action::Watch => told.push((decision.action, decision.rule)),
            Action::Deny | Action::Kill => return vec![(decision.action, decision.rule)],
        }
    }
    told
}

fn what_the_model_says_happens() {
    let Some(stage) = stage() else { return };
    for (json, cases) in [FILES, NETWORK, PROGRAMS, CONTAINED, MODULES] {
        for mode in ["audit", "deny"] {
            tables::prepare();
            let text = format!("{{\"mode\":\"{mode}\",{json}}}");
            let rules = rules(&text);
            let set = Ruleset::new(&rules, &|_| None);
            let mut session = Session::begin(stage, &rules);
            for case in cases {
                crate::at(format!("{mode} {}", case.line));
                let line = case.line.replace("AGENT", &std::process::id().to_string());
                let foretold = foretold(&set, case);
                let denied = foretold.iter().any(|(action, _)| *action == Action::Deny);
                let result = session.ask(&line);
                assert_eq!(result == "denied", denied, "{result}");
                assert!(denied || result == "ok", "{result}");
                let expect: Vec<String> =
                    foretold.iter().map(|(_, rule)| stage::name_of(&set, *rule)).collect();
                assert_eq!(session.told(expect.len()), expect);
            }
            session.end();
        }
    }
}

fn a_kill_ends_the_process() {
    let Some(stage) = stage() else { return };
    tables::prepare();
    let rules = rules(r#"{"mode":"kill","deny_open_write":["/tmp/w/d/"]}"#);
    let mut session = Session::begin(stage, &rules);
    assert_eq!(session.ask("open /tmp/w/f"), "ok");
    assert_eq!(session.ask("create /tmp/w/d/new"), "");
    assert_eq!(session.signal(), Some(libc::SIGKILL));
    assert!(fs::metadata("/tmp/w/d/new").is_err(), "the deed was done all the same");
    let told = session.denials();
    assert_eq!(told[0].mode, "kill");
}

fn digests_are_known_by_any_name() {
    let Some(stage) = stage() else { return };
    tables::prepare();
    if super::attach::kernel() < (6, 2) {
        let hash = format!("{{\"deny_exec\":[\"sha256:{}\"]}}", "00".repeat(32));
        let refused = stage.watch(&rules(&hash)).unwrap_err().to_string();
        assert!(refused.contains("digest"), "{refused}");
        return;
    }
    let digest = stage::sha256("/tmp/w/program");
    let json = format!("{{\"deny_exec\":[\"sha256:{digest}\"]}}");
    let set = Ruleset::new(&rules(&json), &|_| None);
    let mut session = Session::begin(stage, &rules(&json));
    fs::copy("/tmp/w/program", "/tmp/w/same").unwrap();
    assert_eq!(session.ask("exec /tmp/w/same"), "denied");
    assert_eq!(session.told(1), [stage::name_of(&set, 1)]);
    let mut bytes = fs::read("/tmp/w/program").unwrap();
    bytes.push(0);
    fs::write("/tmp/w/same", bytes).unwrap();
    assert_eq!(session.ask("exec /tmp/w/same"), "ok");
    session.end();
}

fn rules_change_while_a_session_runs() {
    let Some(stage) = stage() else { return };
    tables::prepare();
    let one = rules(r#"{"deny_open_write":["/tmp/w/f"]}"#);
    let other = rules(r#"{"deny_open_write":["/tmp/w/g"]}"#);
    let mut session = Session::begin(stage, &one);
    for (rules, f, g) in [(&other, "ok", "denied"), (&one, "denied", "ok")] {
        session.renew_rules(stage, rules);
        assert_eq!((&*session.ask("open /tmp/w/f"), &*session.ask("open /tmp/w/g")), (f, g));
    }
    session.renew_rules(stage, &CaptureRules::default());
    assert_eq!(session.ask("open /tmp/w/f"), "ok");
    session.leave_alone();
    session.renew_rules(stage, &one);
    assert_eq!(session.ask("open /tmp/w/f"), "denied");
    session.end();
}

fn sessions_have_their_own_rules() {
    let Some(stage) = stage() else { return };
    tables::prepare();
    let mut none = Session::begin(stage, &CaptureRules::default());
    let one = Session::begin(stage, &rules(r#"{"deny_open_write":["/tmp/w/f"]}"#));
    let mut same = Session::begin(stage, &rules(r#"{"deny_open_write":["/tmp/w/f"]}"#));
    let mut other = Session::begin(stage, &rules(r#"{"deny_open_write":["/tmp/w/"]}"#));
    one.end();
    for (session, f, g) in
        [(&mut none, "ok", "ok"), (&mut same, "denied", "ok"), (&mut other, "denied", "denied")]
    {
        assert_eq!((&*session.ask("open /tmp/w/f"), &*session.ask("open /tmp/w/g")), (f, g));
    }
    [none, same, other].into_iter().for_each(Session::end);
}

fn nobody_outside_is_kept_from_anything() {
    let Some(stage) = stage() else { return };
    tables::prepare();
    let all = r#"{"mode":"kill","contain":true,"deny_open_write":["/tmp/w/"],"deny_connect":["0.0.0.0/0"]}"#;
    let session = Session::begin(stage, &rules(all));
    let mut outside = Session::outside();
    for case in FILES.1.iter().chain(NETWORK.1) {
        crate::at(case.line);
        assert_eq!(outside.ask(case.line), "ok");
    }
    session.end();
    outside.end();
}

/// Nor the process that is this test's: a signal that it did not ask for would end it.
fn nobody_has_the_node_told_by_a_signal() {
    let Some(stage) = stage() else { return };
    let json = rules(r#"{"contain":true}"#);
    let set = Ruleset::new(&json, &|_| None);
    let mut session = Session::begin(stage, &json);
    assert_eq!(session.ask(&format!("own-signal {}", std::process::id())), "ok");
    let denied = stage::name_of(&set, ebpf_abi::rules::RULE_CONTAIN | contain::SIGNAL);
    assert_eq!(session.told(1), [denied]);
    session.end();
    let mut outside = Session::outside();
    assert_eq!(outside.ask(&format!("own-signal {}", std::process::id())), "ok");
    outside.end();
}

fn what_is_turned_off_is_turned_on_again() {
    let Some(stage) = stage() else { return };
    tables::prepare();
    let mut session = Session::begin(stage, &rules(r#"{"deny_open_write":["/tmp/w/f"]}"#));
    assert_eq!(session.ask("open /tmp/w/f"), "denied");
    match fs::write("/proc/sys/kernel/ftrace_enabled", "0") {
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
            session.end();
            return crate::not_here("nobody can turn it off here");
        }
        done => done.unwrap(),
    }
    assert_eq!(session.ask("open /tmp/w/f"), "ok", "it would prove nothing");
    let lost = session.lost();
    assert_eq!((&*lost.class, &*lost.reason), ("program", "tamper"));
    assert_eq!(session.ask("open /tmp/w/f"), "denied");
    session.end();
}

/// What a deed is on a path.
const fn known(path: &'static str) -> Path<'static> {
    Path::Known(path.as_bytes())
}
