//! Rules of roles that change while sessions run, with real roles of a real cluster. Where the kernel takes LSM programs they hold from then
//! on; where it does not, what they keep from cannot be kept: the session is ended, or told of where its client is gone.

use std::fs;

use serde_json::Value;

use crate::cluster::{Cluster, NODE, User, at, shared};
use crate::run::until;

/// A role whose sessions are told of and, where `rules` says so, kept from things.
fn role(cluster: &Cluster, name: &str, rules: &str) {
    let allow = r#"{"logins": ["{{internal.logins}}"], "node_labels": {"*": "*"}}"#;
    let options = format!(r#"{{"enhanced_recording": ["command"]{rules}}}"#);
    cluster.role_with(name, allow, "{}", &options);
}

fn rules(mode: &str, folder: &str) -> String {
    format!(r#", "capture_rules": {{"mode": "{mode}", "deny_open_write": ["{folder}/"]}}"#)
}

/// What `session.start` says of the kernel.
fn tier(cluster: &Cluster, user: &User) -> (String, String) {
    let start = cluster.event("session.start", |start| start["user"] == *user.name);
    let text = |key: &str| start[key].as_str().unwrap_or_default().to_owned();
    (text("sid"), text("capture"))
}

#[test]
fn rules_that_a_role_gets_hold_for_what_runs() {
    let cluster = shared();
    role(cluster, "ruled", "");
    let user = cluster.user("ruled", "ruled", "root");
    let folder = cluster.path().join("ruled");
    fs::create_dir(&folder).unwrap();
    let folder = folder.to_str().unwrap();
    let line = format!(
        "while read -r name; do if : > {folder}/$name; then echo $name made; else echo $name denied; fi; done"
    );
    let mut ssh = cluster.openssh("ssh", &user).args([&at("root"), &line]).spawn();
    ssh.say("first\n");
    ssh.hear("first made");
    let (sid, tier) = tier(cluster, &user);
    role(cluster, "ruled", &rules("audit", folder));
    let ended = |cut: &Value| cut["sid"] == *sid;
    if tier == "A" {
        // Not before the node has heard of it.
        until("rules that watch", || {
            ssh.say("watched\n");
            ssh.hear("watched made");
            let told = cluster.events(&["--type", "session.denied", "--session", &sid]);
            told.iter().any(|denied| denied["mode"] == "audit").then_some(())
        });
        role(cluster, "ruled", &rules("deny", folder));
        let denied = until("rules that deny", || {
            ssh.say("kept\n");
            let told = cluster.events(&["--type", "session.denied", "--session", &sid]);
            told.into_iter().find(|denied| denied["mode"] == "deny")
        });
        assert!(denied["path"].as_str().unwrap().starts_with(folder), "{denied}");
        ssh.hear("kept denied");
    } else {
        ssh.say("watched\n");
        ssh.hear("watched made");
        role(cluster, "ruled", &rules("deny", folder));
        let cut = cluster.event("client.disconnect", ended);
        assert!(cut["reason"].as_str().unwrap().contains("capture_rules"), "{cut}");
        ssh.finish();
        cluster.event("session.end", ended);
    }
    role(cluster, "ruled", "");
}

#[test]
fn rules_reach_what_goes_on_without_its_client() {
    let cluster = Cluster::start_apart();
    role(&cluster, "left", "");
    let user = cluster.user("left", "left", "root");
    let folder = cluster.path().join("left");
    fs::create_dir(&folder).unwrap();
    let folder = folder.to_str().unwrap();
    let line = format!(
        "nohup setsid sh -c 'until test -e {folder}.over; do : > {folder}/made; sleep 0.1; done' \
         >/dev/null 2>&1 & exit 0"
    );
    cluster.openssh("ssh", &user).args([&at("root"), &line]).wait().good();
    let (sid, tier) = tier(&cluster, &user);
    cluster.event("session.detached", |event| event["sid"] == *sid);
    // Kept, or told as not kept; once for each change.
    let told = |count: usize| {
        let (name, class) =
            if tier == "A" { ("session.denied", "") } else { ("session.loss", "rules") };
        until("word of the rules", || {
            let events = cluster.events(&["--type", name, "--session", &sid]);
            let about = |event: &&Value| class.is_empty() || event["class"] == class;
            (events.iter().filter(about).count() >= count).then_some(())
        });
    };
    role(&cluster, "left", &rules("deny", folder));
    told(1);
    // The node is told of other rules when it comes again.
    cluster.kill(NODE);
    role(&cluster, "left", &rules("kill", folder));
    cluster.start_node(NODE, "env=prod,team=web");
    told(2);
    fs::write(format!("{folder}.over"), "").unwrap();
    cluster.event("session.capture", |event| event["sid"] == *sid);
}
