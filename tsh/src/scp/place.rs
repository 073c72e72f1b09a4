//! Places on either side, and which names from the other side may become names here. Pure.

/// Where a file is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    Local(String),
    Remote(RemotePlace),
}

/// `[user@]host:path`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RemotePlace {
    /// With the account, if written.
    pub(crate) host: String,
    /// Relative to the account's home unless absolute; never empty.
    pub(crate) path: String,
}

impl Place {
    /// Remote if a colon comes before any slash, as scp decides.
    pub(crate) fn parse(text: &str) -> Self {
        let local = || Self::Local(text.to_owned());
        let Some((host, path)) = text.split_once(':') else { return local() };
        if host.is_empty() || host.contains('/') {
            return local();
        }
        Self::Remote(RemotePlace { host: host.to_owned(), path: home_relative(path) })
    }
    pub(crate) fn into_local(self) -> Option<String> {
        match self {
            Self::Local(path) => Some(path),
            Self::Remote(_) => None,
        }
    }
    pub(crate) fn into_remote(self) -> Option<RemotePlace> {
        match self {
            Self::Local(_) => None,
            Self::Remote(place) => Some(place),
        }
    }
}

/// SFTP starts in the home, so `~/` and nothing mean there.
fn home_relative(path: &str) -> String {
    match path {
        "" | "~" | "~/" => ".".into(),
        _ => path.strip_prefix("~/").unwrap_or(path).to_owned(),
    }
}

/// A name from a remote listing that may become a file here: one component, and not a way out of the folder.
pub(crate) fn is_safe_name(name: &str) -> bool {
    !matches!(name, "" | "." | "..") && !name.contains(['/', '\0'])
}

/// What a copied thing is called: the last component of a path that the user wrote. `None` for `.`, `..` and `/`:
/// their content is copied.
pub(crate) fn base_name(path: &str) -> Option<&str> {
    let name = path.trim_end_matches('/').rsplit('/').next()?;
    is_safe_name(name).then_some(name)
}

/// `dir/name` on the remote side.
pub(crate) fn join(dir: &str, name: &str) -> String {
    match dir {
        "." => name.to_owned(),
        _ if dir.ends_with('/') => format!("{dir}{name}"),
        _ => format!("{dir}/{name}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_colon_before_a_slash_means_remote() {
        fn check(text: &str, expect: Option<(&str, &str)>) {
            let got = Place::parse(text).into_remote();
            assert_eq!(got.as_ref().map(|p| (p.host.as_str(), p.path.as_str())), expect, "{text}");
        }
        check("web1:a", Some(("web1", "a")));
        check("root@web1:/etc/x", Some(("root@web1", "/etc/x")));
        check("web1:", Some(("web1", ".")));
        check("web1:~/a", Some(("web1", "a")));
        check("web1:a:b", Some(("web1", "a:b")));
        check("./a:b", None);
        check("/a:b", None);
        check(":a", None);
        check("a", None);
    }

    #[test]
    fn names_from_the_other_side_stay_in_their_folder() {
        fn check(name: &str, expect: bool) {
            assert_eq!(is_safe_name(name), expect, "{name:?}");
        }
        check("a", true);
        check("..a", true);
        check("-rf", true);
        check("", false);
        check(".", false);
        check("..", false);
        check("../a", false);
        check("a/b", false);
        check("/etc/passwd", false);
        check("a\0b", false);
    }

    #[test]
    fn base_names() {
        assert_eq!(base_name("/etc/passwd"), Some("passwd"));
        assert_eq!(base_name("dir/"), Some("dir"));
        assert_eq!(base_name("/"), None);
        assert_eq!(base_name("a/.."), None);
        assert_eq!(base_name("."), None);
        assert_eq!(join(".", "a"), "a");
        assert_eq!(join("/", "a"), "/a");
        assert_eq!(join("d", "a"), "d/a");
    }
}
