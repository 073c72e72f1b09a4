//! The environment of a session: what the system gives, and the few variables that a client may send. Names that change
//! how programs load or run code are refused whatever the allow-list says. Pure. Called by [`crate::ssh`].

use crate::account::Account;

/// Which variables clients may send.
#[derive(Debug, Clone)]
pub(crate) struct AllowList {
    patterns: Vec<String>,
}

impl AllowList {
    /// Names, or prefixes that end in `*`.
    pub(crate) fn new(patterns: Vec<String>) -> Self {
        Self { patterns }
    }

    /// Whether a client may set this variable to this value.
    pub(crate) fn accepts(&self, name: &str, value: &str) -> bool {
        is_name(name)
            && value.len() <= VALUE_BYTES_MAX
            && !value.contains('\0')
            && !is_dangerous(name)
            && self.patterns.iter().any(|pattern| match pattern.strip_suffix('*') {
                Some(prefix) => name.starts_with(prefix),
                None => name == pattern,
            })
    }
}

/// The names that configurations get when they name none.
pub fn default_allow() -> Vec<String> {
    ["LANG", "LANGUAGE", "LC_*", "COLORTERM", "NO_COLOR", "TERM_PROGRAM", "TERM_PROGRAM_VERSION"]
        .map(str::to_owned)
        .to_vec()
}

fn is_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= NAME_BYTES_MAX
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
        && !name.starts_with(|c: char| c.is_ascii_digit())
}

fn is_dangerous(name: &str) -> bool {
    DANGEROUS.contains(&name) || DANGEROUS_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

/// What a session's programs find beside the client's variables.
#[derive(Debug)]
pub(crate) struct Given<'a> {
    pub(crate) account: &'a Account,
    pub(crate) session_id: &'a str,
    /// `address port` of the user, split from what the proxy said.
    pub(crate) client: (&'a str, &'a str),
    /// Terminal type and device, with a terminal.
    pub(crate) terminal: Option<(&'a str, &'a str)>,
}

/// The whole environment. System values come last, so that a client's can't stand in their place.
pub(crate) fn compose(
    given: &Given<'_>,
    client: &[(String, String)],
) -> Vec<(String, std::ffi::OsString)> {
    let mut all: Vec<(String, std::ffi::OsString)> =
        client.iter().map(|(name, value)| (name.clone(), value.into())).collect();
    let account = given.account;
    let (address, port) = given.client;
    let path = if account.uid == 0 { PATH_ROOT } else { PATH_USER };
    let mut set = |name: &str, value: std::ffi::OsString| {
        all.retain(|(other, _)| other != name);
        all.push((name.to_owned(), value));
    };
    set("USER", account.name.clone().into());
    set("LOGNAME", account.name.clone().into());
    set("HOME", account.home.clone().into());
    set("SHELL", account.shell.clone().into());
    set("PATH", path.into());
    set("MAIL", format!("/var/mail/{}", account.name).into());
    set("POSTERN_SESSION_ID", given.session_id.into());
    // The connection reaches this machine through its own tunnel: there is no local address that the user dialed.
    set("SSH_CLIENT", format!("{address} {port} 22").into());
    set("SSH_CONNECTION", format!("{address} {port} 127.0.0.1 22").into());
    if let Some((kind, device)) = given.terminal {
        set("TERM", kind.into());
        set("SSH_TTY", device.into());
    }
    all
}

/// As Debian's login.defs has them.
const PATH_ROOT: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const PATH_USER: &str = "/usr/local/bin:/usr/bin:/bin:/usr/local/games:/usr/games";
/// Longer names are nobody's locale.
const NAME_BYTES_MAX: usize = 64;
/// Locale and colour values are short; this also bounds what a client can put into a process' start.
const VALUE_BYTES_MAX: usize = 1024;
/// Most variables of one session; OpenSSH's client sends a handful.
pub(crate) const VARIABLES_MAX: usize = 64;
/// Never from a client: they load code, choose programs, or are ours to set.
const DANGEROUS: &[&str] = &[
    "BASHOPTS",
    "BASH_ENV",
    "CDPATH",
    "ENV",
    "FPATH",
    "GCONV_PATH",
    "GETCONF_DIR",
    "GLOBIGNORE",
    "HOME",
    "HOSTALIASES",
    "IFS",
    "LOCALDOMAIN",
    "LOCPATH",
    "LOGNAME",
    "MAIL",
    "NIS_PATH",
    "NLSPATH",
    "NODE_OPTIONS",
    "PATH",
    "PROMPT_COMMAND",
    "PS4",
    "RESOLV_HOST_CONF",
    "RES_OPTIONS",
    "SHELL",
    "SHELLOPTS",
    "TERMCAP",
    "TERMINFO",
    "TERMINFO_DIRS",
    "TERMPATH",
    "TMPDIR",
    "TZDIR",
    "USER",
    "ZDOTDIR",
];
const DANGEROUS_PREFIXES: &[&str] = &[
    "BASH_FUNC_",
    "DYLD_",
    "GIT_",
    "GLIBC_",
    "JAVA_",
    "LD_",
    "MALLOC_",
    "PERL",
    "POSTERN_",
    "PYTHON",
    "RUBY",
    "SSH_",
    "SUDO_",
    "_RLD",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_listed_and_harmless_variables_pass() {
        fn check(patterns: &[&str], name: &str, value: &str, expect: bool) {
            let list = AllowList::new(patterns.iter().map(|p| (*p).to_owned()).collect());
            assert_eq!(list.accepts(name, value), expect, "{patterns:?} {name}");
        }
        check(&["LANG", "LC_*"], "LANG", "C.UTF-8", true);
        check(&["LANG", "LC_*"], "LC_ALL", "C", true);
        check(&["LANG", "LC_*"], "LANGUAGE", "de", false);
        check(&["LANG"], "LANG", "a\0b", false);
        check(&["LANG"], "LANG", &"x".repeat(2000), false);
        check(&["*"], "LD_PRELOAD", "/tmp/x.so", false);
        check(&["*"], "BASH_ENV", "/tmp/x", false);
        check(&["*"], "BASH_FUNC_ls%%", "() { :; }", false);
        check(&["PATH"], "PATH", "/tmp", false);
        check(&["*"], "SHELL", "/tmp/x", false);
        check(&["*"], "PYTHONSTARTUP", "/tmp/x", false);
        check(&["*"], "A=B", "x", false);
        check(&["*"], "1A", "x", false);
        check(&["*"], "", "x", false);
        check(&[], "LANG", "C", false);
    }

    #[test]
    fn the_systems_values_win() {
        let account = Account {
            name: "ann".into(),
            uid: 1000,
            gid: 1000,
            groups: vec![1000],
            home: "/home/ann".into(),
            shell: "/bin/bash".into(),
        };
        let given = Given {
            account: &account,
            session_id: "s",
            client: ("192.0.2.7", "4711"),
            terminal: Some(("xterm", "/dev/pts/3")),
        };
        let client = [("LANG".to_owned(), "C".to_owned()), ("TERM".to_owned(), "x".to_owned())];
        let all = compose(&given, &client);
        let value = |name: &str| {
            let found: Vec<_> = all.iter().filter(|(other, _)| other == name).collect();
            assert_eq!(found.len(), 1, "{name}");
            found[0].1.to_str().unwrap().to_owned()
        };
        assert_eq!(value("LANG"), "C");
        assert_eq!(value("TERM"), "xterm");
        assert_eq!(value("HOME"), "/home/ann");
        assert_eq!(value("PATH"), PATH_USER);
        assert_eq!(value("SSH_CONNECTION"), "192.0.2.7 4711 127.0.0.1 22");
        assert_eq!(value("SSH_TTY"), "/dev/pts/3");
    }
}
