//! `~/.tsh/known_hosts`: one `@cert-authority` line per proxy and authority. Text in, text out; files are `home`'s.
//! `tsh` itself takes a line only for the proxy and cluster it belongs to; stock clients go by the patterns.

/// The authority keys of one cluster behind one proxy.
pub(crate) fn keys_of(text: &str, proxy_host: &str, cluster: &str) -> Vec<String> {
    text.lines()
        .filter_map(parse)
        .filter(|line| line.is_for(proxy_host, cluster))
        .map(|line| line.key)
        .collect()
}

/// The other proxies whose lines claim `cluster` with a key that is not among `keys`. A stock client would believe
/// either, so one cluster's authority could speak for the other's hosts.
pub(crate) fn rivals(text: &str, proxy_host: &str, cluster: &str, keys: &[String]) -> Vec<String> {
    let keys: Vec<String> = keys.iter().map(|key| bare_key(key)).collect();
    text.lines()
        .filter_map(parse)
        .filter(|line| line.proxy_host != proxy_host && line.cluster == cluster)
        .filter(|line| !keys.contains(&line.key))
        .map(|line| line.proxy_host)
        .collect()
}

/// `text` with this proxy's lines replaced by `keys` (none: removed). Other lines stay as they are.
pub(crate) fn replace(text: &str, proxy_host: &str, cluster: &str, keys: &[String]) -> String {
    let mut result = String::new();
    for line in text.lines() {
        if parse(line).is_none_or(|line| line.proxy_host != proxy_host) {
            result.push_str(line);
            result.push('\n');
        }
    }
    for key in keys {
        let key = bare_key(key);
        result.push_str(&format!(
            "@cert-authority {proxy_host},{cluster},*.{cluster} {key} type=host\n"
        ));
    }
    result
}

struct Line {
    proxy_host: String,
    cluster: String,
    key: String,
}

impl Line {
    fn is_for(&self, proxy_host: &str, cluster: &str) -> bool {
        self.proxy_host == proxy_host && self.cluster == cluster
    }
}

/// A line as [`replace`] writes it; anything else is somebody else's.
fn parse(line: &str) -> Option<Line> {
    let mut words = line.split_whitespace();
    if words.next()? != "@cert-authority" {
        return None;
    }
    let mut patterns = words.next()?.split(',');
    let (proxy_host, cluster) = (patterns.next()?.to_owned(), patterns.next()?.to_owned());
    let key = format!("{} {}", words.next()?, words.next()?);
    Some(Line { proxy_host, cluster, key })
}

/// Algorithm and base64 without a comment: comments come from elsewhere.
fn bare_key(key: &str) -> String {
    key.split_whitespace().take(2).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_found_again_and_replaced() {
        let first = replace("# mine\n", "p1", "one", &["ssh-ed25519 AAAA comment".into()]);
        assert_eq!(first, "# mine\n@cert-authority p1,one,*.one ssh-ed25519 AAAA type=host\n");
        let both = replace(&first, "p2", "two", &["ssh-ed25519 BBBB".into()]);
        assert_eq!(keys_of(&both, "p1", "one"), ["ssh-ed25519 AAAA"]);
        assert_eq!(keys_of(&both, "p1", "two"), [""; 0]);
        let rotated = replace(&both, "p1", "one", &["ssh-ed25519 CCCC".into()]);
        assert_eq!(keys_of(&rotated, "p1", "one"), ["ssh-ed25519 CCCC"]);
        assert_eq!(keys_of(&rotated, "p2", "two"), ["ssh-ed25519 BBBB"]);
        assert_eq!(replace(&rotated, "p1", "one", &[]).lines().count(), 2);
    }

    #[test]
    fn another_proxy_with_the_same_cluster_name_is_noticed() {
        let text = replace("", "p1", "prod", &["ssh-ed25519 AAAA".into()]);
        assert_eq!(rivals(&text, "evil", "prod", &["ssh-ed25519 BBBB".into()]), ["p1"]);
        assert_eq!(rivals(&text, "p2", "prod", &["ssh-ed25519 AAAA x".into()]), [""; 0]);
        assert_eq!(rivals(&text, "p1", "prod", &["ssh-ed25519 BBBB".into()]), [""; 0]);
        assert_eq!(rivals(&text, "p2", "test", &["ssh-ed25519 BBBB".into()]), [""; 0]);
    }
}
