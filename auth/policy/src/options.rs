//! What the roles together say about a session. Limits: the strictest role wins. Permissions: as each line says, as
//! people know it from the established roles. Called by [`crate::decide`] and [`crate::grant`].

use std::time::Duration;

use proto::capture_rules::CaptureRules;
use proto::resource::{EnhancedRecording, RecordMode, RoleOptions};

/// What the roles say about a permitted session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionOptions {
    /// What is taken down from the kernel.
    pub captured: Captured,
    pub client_idle_timeout: Option<Duration>,
    /// End the session at [`crate::Permit::expires`].
    pub disconnect_expired_cert: bool,
    pub file_copy: bool,
    pub forward_agent: bool,
    pub max_sessions: Option<u32>,
    pub port_forwarding: bool,
    pub record: RecordMode,
    /// What the session must not do.
    pub rules: CaptureRules,
}

/// Kinds of what the kernel tells of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Captured {
    pub command: bool,
    pub disk: bool,
    pub network: bool,
}

impl Captured {
    /// All that any role names; what people know as the default where none says anything.
    fn over<'a>(roles: impl Iterator<Item = &'a RoleOptions>) -> Self {
        let mut named = roles.filter_map(|o| o.enhanced_recording.as_ref()).peekable();
        if named.peek().is_none() {
            return Self { command: true, disk: false, network: true };
        }
        let mut all = Self { command: false, disk: false, network: false };
        for kind in named.flatten() {
            match kind {
                EnhancedRecording::Command => all.command = true,
                EnhancedRecording::Disk => all.disk = true,
                EnhancedRecording::Network => all.network = true,
            }
        }
        all
    }

    /// Something is.
    pub fn any(self) -> bool {
        self.command || self.disk || self.network
    }
}

impl SessionOptions {
    pub(crate) fn over<'a>(roles: impl Iterator<Item = &'a RoleOptions> + Clone) -> Self {
        let ports = roles.clone().filter_map(|o| o.port_forwarding).reduce(|a, b| a || b);
        let records = roles.clone().filter_map(record_mode);
        Self {
            captured: Captured::over(roles.clone()),
            client_idle_timeout: roles
                .clone()
                .filter_map(|o| o.client_idle_timeout)
                .map(|s| s.0)
                .min(),
            disconnect_expired_cert: roles.clone().any(|o| o.disconnect_expired_cert == Some(true)),
            file_copy: !roles.clone().any(|o| o.ssh_file_copy == Some(false)),
            forward_agent: roles.clone().any(|o| o.forward_agent == Some(true)),
            max_sessions: roles.clone().filter_map(|o| o.max_sessions).min(),
            port_forwarding: ports.unwrap_or(true),
            record: records.max().unwrap_or(RecordMode::BestEffort),
            rules: rules(roles),
        }
    }
}

/// What one role says of SSH recordings; its `ssh` wins over its `default`.
fn record_mode(options: &RoleOptions) -> Option<RecordMode> {
    let record = options.record_session.as_ref()?;
    record.ssh.or(record.default)
}

/// What any role denies. A role without rules says nothing of the mode.
pub(crate) fn rules<'a>(roles: impl Iterator<Item = &'a RoleOptions>) -> CaptureRules {
    let named = roles.filter_map(|o| o.capture_rules.as_ref()).filter(|rules| !rules.is_empty());
    named.cloned().reduce(|all, more| all.and(&more)).unwrap_or_default()
}

/// Longest life of a certificate over the roles.
pub(crate) fn certificate_ttl<'a>(roles: impl Iterator<Item = &'a RoleOptions>) -> Duration {
    let shortest = roles.filter_map(|o| o.max_session_ttl).map(|s| s.0).min();
    shortest.unwrap_or(CERTIFICATE_TTL_DEFAULT).min(CERTIFICATE_TTL_MAX)
}

/// A working day.
const CERTIFICATE_TTL_DEFAULT: Duration = Duration::from_secs(12 * 3600);
/// Whatever roles say: there is no revocation but locks and expiry.
const CERTIFICATE_TTL_MAX: Duration = Duration::from_secs(30 * 3600);

#[cfg(test)]
mod tests {
    use super::*;
    use proto::capture_rules::RuleMode;
    use proto::resource::{RecordSession, Span};

    fn span(text: &str) -> Option<Span> {
        Some(Span::parse(text).unwrap())
    }

    fn over(roles: &[RoleOptions]) -> SessionOptions {
        SessionOptions::over(roles.iter())
    }

    #[test]
    fn silence_gives_the_defaults() {
        let expect = SessionOptions {
            captured: Captured { command: true, disk: false, network: true },
            client_idle_timeout: None,
            disconnect_expired_cert: false,
            file_copy: true,
            forward_agent: false,
            max_sessions: None,
            port_forwarding: true,
            record: RecordMode::BestEffort,
            rules: CaptureRules::default(),
        };
        assert_eq!(over(&[]), expect);
        assert_eq!(over(&[RoleOptions::default(), RoleOptions::default()]), expect);
    }

    #[test]
    fn limits_take_the_strictest_role() {
        let loose = RoleOptions {
            client_idle_timeout: span("1h"),
            max_sessions: Some(10),
            disconnect_expired_cert: Some(false),
            ssh_file_copy: Some(true),
            record_session: Some(RecordSession {
                default: Some(RecordMode::BestEffort),
                ssh: None,
            }),
            ..RoleOptions::default()
        };
        let strict = RoleOptions {
            client_idle_timeout: span("5m"),
            max_sessions: Some(2),
            disconnect_expired_cert: Some(true),
            ssh_file_copy: Some(false),
            record_session: Some(RecordSession { default: Some(RecordMode::Strict), ssh: None }),
            ..RoleOptions::default()
        };
        for roles in [[loose.clone(), strict.clone()], [strict, loose]] {
            let options = over(&roles);
            assert_eq!(options.client_idle_timeout, Some(Duration::from_secs(300)));
            assert_eq!(options.max_sessions, Some(2));
            assert!(options.disconnect_expired_cert);
            assert!(!options.file_copy);
            assert_eq!(options.record, RecordMode::Strict);
        }
    }

    #[test]
    fn forwarding_is_a_yes_from_any_role() {
        fn check(ports: [Option<bool>; 2], agent: [Option<bool>; 2], expect: (bool, bool)) {
            let role = |i: usize| RoleOptions {
                port_forwarding: ports[i],
                forward_agent: agent[i],
                ..RoleOptions::default()
            };
            let options = over(&[role(0), role(1)]);
            let got = (options.port_forwarding, options.forward_agent);
            assert_eq!(got, expect, "{ports:?} {agent:?}");
        }
        check([Some(false), None], [None, None], (false, false));
        check([Some(false), Some(true)], [Some(false), Some(true)], (true, true));
        check([None, Some(true)], [None, Some(true)], (true, true));
        check([Some(false), Some(false)], [Some(false), None], (false, false));
    }

    #[test]
    fn ssh_recording_wins_over_the_default_of_its_own_role_only() {
        let role = |default, ssh| RoleOptions {
            record_session: Some(RecordSession { default, ssh }),
            ..RoleOptions::default()
        };
        let (easy, strict) = (Some(RecordMode::BestEffort), Some(RecordMode::Strict));
        assert_eq!(over(&[role(strict, easy)]).record, RecordMode::BestEffort);
        assert_eq!(over(&[role(strict, easy), role(strict, None)]).record, RecordMode::Strict);
    }

    #[test]
    fn what_any_role_denies_is_denied_in_the_strictest_way() {
        let role = |json: &str| RoleOptions {
            capture_rules: Some(serde_json::from_str(json).unwrap()),
            ..RoleOptions::default()
        };
        let watch = role(r#"{"mode":"audit","deny_exec":["/usr/bin/nc"]}"#);
        let deny = role(r#"{"deny_exec":["/usr/bin/nc"],"deny_connect":["10.0.0.0/8"]}"#);
        let silent = role(r#"{"mode":"kill"}"#);
        assert_eq!(over(&[watch.clone(), silent.clone()]).rules.mode, RuleMode::Audit);
        assert!(!over(&[watch.clone(), silent]).rules.enforces());
        for roles in [[watch.clone(), deny.clone()], [deny, watch]] {
            let rules = over(&roles).rules;
            assert_eq!((rules.mode, rules.contain), (RuleMode::Deny, false));
            assert_eq!((rules.deny_exec.len(), rules.deny_connect.len()), (1, 1));
        }
    }

    #[test]
    fn certificate_life() {
        fn check(roles: &[Option<&str>], hours: u64) {
            let roles: Vec<_> = roles
                .iter()
                .map(|text| RoleOptions {
                    max_session_ttl: text.map(|t| Span::parse(t).unwrap()),
                    ..RoleOptions::default()
                })
                .collect();
            assert_eq!(certificate_ttl(roles.iter()), Duration::from_secs(hours * 3600));
        }
        check(&[], 12);
        check(&[None], 12);
        check(&[Some("20h"), None], 20);
        check(&[Some("20h"), Some("8h")], 8);
        check(&[Some("30d")], 30);
    }
}
