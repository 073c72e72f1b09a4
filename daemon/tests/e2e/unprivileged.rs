//! Without root: a whole cluster as an ordinary user, whose node serves that user only and says so.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use crate::account::Account;
use crate::cluster::{CLUSTER, Cluster, free_port};
use crate::run::Run;

#[test]
fn an_ordinary_user_serves_only_itself() {
    let mut cluster = Cluster::empty();
    let account = Account::new("postern-e2e-plain");
    fs::set_permissions(cluster.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let data = account.home().join("solo");
    let auth = free_port();
    let (dir, web, jump) = (data.display(), cluster.web, cluster.jump);
    let config = cluster.path().join("solo.yaml");
    fs::write(
        &config,
        format!(
            "postern:\n  nodename: solo-1\n  data_dir: {dir}\n  auth_service:\n    cluster_name: {CLUSTER}\n    listen_addr: 127.0.0.1:{auth}\n  proxy_service:\n    web_listen_addr: 127.0.0.1:{web}\n    listen_addr: 127.0.0.1:{jump}\n"
        ),
    )
    .unwrap();
    let (uid, gid) = (account.id("-u"), account.id("-g"));
    let home = format!("HOME={}", account.home().display());
    let become_user =
        ["setpriv", "--reuid", &uid, "--regid", &gid, "--clear-groups", "env", home.as_str()];
    cluster.spawn("solo", &become_user, &["start", "-c", config.to_str().unwrap()]);
    cluster.keep_state_in("solo", &data);
    cluster.wait_ready("solo");
    cluster.learn_pin();
    assert!(fs::read_to_string(cluster.log_path("solo")).unwrap().contains("only"));

    cluster.access_all();
    let user = cluster.user("plain", "access-all", &format!("root,{}", account.name));
    let ssh = |login: &str, command: &str| {
        cluster
            .openssh("ssh", &user)
            .args([format!("{login}@solo-1.{CLUSTER}").as_str(), command])
            .wait()
    };
    let out = ssh(&account.name, "id -un; pwd").good().text();
    assert_eq!(out, format!("{}\n{}\n", account.name, account.home().display()));
    ssh("root", "id").refused("ermission denied");
    let tsh = cluster.tsh(&user).args(["ssh", "root@solo-1", "id"]).wait();
    tsh.refused(&account.name);
    // Files, as the user too.
    let file = account.home().join("by-scp");
    cluster
        .openssh("scp", &user)
        .args(["/etc/hostname", &format!("{}@solo-1.{CLUSTER}:{}", account.name, file.display())])
        .wait()
        .good();
    Run::new("cmp").arg("/etc/hostname").arg(&file).wait().good();
}
