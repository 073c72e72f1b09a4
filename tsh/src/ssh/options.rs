//! `-o` in the form of ssh_config. The few that mean something here are taken; those that only tune stock clients or
//! would relax what is always checked are accepted without effect, because scripts pass them; the rest are errors,
//! so that nothing is believed to be in force that is not.

use cli::failure::Failure;

/// What was taken.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Options {
    pub(crate) forward_agent: bool,
    pub(crate) tty: Option<Tty>,
}

/// `RequestTTY`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tty {
    Auto,
    Force,
    No,
    Yes,
}

impl Options {
    /// # Errors
    /// An option or value that is not known.
    pub(crate) fn parse(list: &[String]) -> Result<Self, Failure> {
        let mut options = Self::default();
        for text in list {
            let bad = || Failure::usage(format!("-o {text:?} is not supported"));
            let (name, value) =
                text.split_once(['=', ' ']).map(|(n, v)| (n.trim(), v.trim())).ok_or_else(bad)?;
            let value = value.to_ascii_lowercase();
            match (name.to_ascii_lowercase().as_str(), value.as_str()) {
                ("forwardagent", "yes") => options.forward_agent = true,
                ("forwardagent", "no") => options.forward_agent = false,
                ("requesttty", "auto") => options.tty = Some(Tty::Auto),
                ("requesttty", "force") => options.tty = Some(Tty::Force),
                ("requesttty", "no") => options.tty = Some(Tty::No),
                ("requesttty", "yes") => options.tty = Some(Tty::Yes),
                (name, _) if WITHOUT_EFFECT.contains(&name) => {}
                _ => return Err(bad()),
            }
        }
        Ok(options)
    }
}

/// Host keys are always checked, and only by certificate; the rest tunes what is fixed here.
const WITHOUT_EFFECT: &[&str] = &[
    "addkeystoagent",
    "batchmode",
    "compression",
    "connecttimeout",
    "loglevel",
    "passwordauthentication",
    "port",
    "serveralivecountmax",
    "serveraliveinterval",
    "stricthostkeychecking",
    "userknownhostsfile",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_options_are_errors() {
        fn check(text: &str, expect: Option<Options>) {
            assert_eq!(Options::parse(&[text.to_owned()]).ok(), expect, "{text}");
        }
        check("ForwardAgent=yes", Some(Options { forward_agent: true, tty: None }));
        check("RequestTTY force", Some(Options { forward_agent: false, tty: Some(Tty::Force) }));
        check("StrictHostKeyChecking=no", Some(Options::default()));
        check("ProxyCommand=x", None);
        check("ForwardAgent=maybe", None);
        check("ForwardAgent", None);
    }
}
