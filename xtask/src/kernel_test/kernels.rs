//! Debian's kernels below `target/kernels`: found and fetched by apt with lists and settings of its own, so that the
//! machine's stay as they are; unpacked, never installed. Each is the one that [`super::pinned`] names, by its digest; where
//! Debian's archive has it no more, the newest of its series, with a word about it: a test must not die of that.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::modules;
use super::pinned::{self, Pin};
use crate::process;

/// A kernel that the tests run on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Wanted {
    /// The oldest that Postern promises to run on.
    #[value(name = "6.1")]
    V6_1,
    #[value(name = "6.12")]
    V6_12,
    /// For the capture only: of those with long-term support the newest.
    #[value(name = "6.18")]
    V6_18,
    /// The newest that can change TLS keys, 6.14 or later.
    #[value(name = "rekey")]
    Rekey,
}

impl Wanted {
    pub(crate) const ALL: &[Self] = &[Self::V6_1, Self::V6_12, Self::V6_18, Self::Rekey];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::V6_1 => "6.1",
            Self::V6_12 => "6.12",
            Self::V6_18 => "6.18",
            Self::Rekey => "rekey",
        }
    }

    pub(super) fn about(self) -> &'static str {
        match self {
            Self::V6_1 => "Debian 12's kernel",
            Self::V6_12 => "Debian 13's kernel, as built for Debian 12",
            Self::V6_18 => "of Debian 13's backports, for the capture only",
            Self::Rekey => "of Debian 13's backports, can change keys",
        }
    }

    /// The tests that it is for; none: all.
    pub(super) fn only(self) -> &'static [&'static str] {
        match self {
            Self::V6_18 => &["capture"],
            Self::V6_1 | Self::V6_12 | Self::Rekey => &[],
        }
    }

    /// Whether the capture is tried on it without LSM programs, too: the oldest, the newest, and what most people run.
    pub(super) fn is_booted_without_lsm(self) -> bool {
        match self {
            Self::V6_1 | Self::V6_12 | Self::Rekey => true,
            Self::V6_18 => false,
        }
    }

    /// By a release's leading numbers.
    pub(super) fn is(self, release: &str) -> bool {
        match (self, numbers(release).get(..2)) {
            (Self::V6_1, Some(version)) => version == [6, 1],
            (Self::V6_12, Some(version)) => version == [6, 12],
            (Self::V6_18, Some(version)) => version == [6, 18],
            (Self::Rekey, Some(version)) => version >= &[6, 14],
            (_, None) => false,
        }
    }
}

/// A kernel that is there.
#[derive(Debug)]
pub(super) struct Kernel {
    pub(super) wanted: Wanted,
    /// `uname -r` of it.
    pub(super) release: String,
    /// Everything of it is below.
    pub(super) folder: PathBuf,
    pub(super) image: PathBuf,
    /// Where `modules.dep` is.
    pub(super) modules: PathBuf,
}

impl Kernel {
    /// Another than the tests are pinned to.
    pub(super) fn is_stand_in(&self) -> bool {
        self.release != pinned::of(self.wanted).release
    }
}

/// The kernel, where it was fetched already: the one that is pinned, or the one that was taken in its stead.
pub(super) fn cached(wanted: Wanted) -> Option<Kernel> {
    let folder = home().join(wanted.name());
    let stamp = fs::read_to_string(folder.join(STAMP)).ok()?;
    let release = stamped(&stamp, pinned::of(wanted))?.to_owned();
    unpacked(wanted, folder, release).ok()
}

/// The release of a stamp, where that is good for what is pinned now.
fn stamped<'s>(stamp: &'s str, pin: &Pin) -> Option<&'s str> {
    let mut words = stamp.split_whitespace();
    let (release, version) = (words.next()?, words.next());
    // A stamp without a version is older than pins are.
    let is_good = version.map_or(release == pin.release, |version| version == pin.version());
    is_good.then_some(release)
}

/// Fetches what is missing of these; says so only where it does something.
pub(crate) fn fetch(wanted: &[Wanted]) -> Result<()> {
    let missing = wanted.iter().copied().filter(|wanted| cached(*wanted).is_none());
    let missing: Vec<Wanted> = missing.collect();
    if missing.is_empty() {
        return Ok(());
    }
    let apt = Apt::new()?;
    println!("setup: looking for kernels in Debian's archive");
    apt.run("apt-get", &["update", "-qq"])?;
    let offered = apt.offered()?;
    missing.into_iter().try_for_each(|wanted| fetch_one(&apt, wanted, &offered))
}

fn fetch_one(apt: &Apt, wanted: Wanted, offered: &[String]) -> Result<()> {
    let pin = pinned::of(wanted);
    println!("setup: fetching Linux {} ({})", pin.release, wanted.name());
    match fetch_pinned(apt, wanted, pin)? {
        Ok(()) => return Ok(()),
        Err(gone) => println!(
            "setup: WARNING: Debian's archive no longer has Linux {} {}, to which the tests on {} are pinned \
             ({gone:#}): the newest of its series is taken. Pin that in xtask/src/kernel_test/pinned.rs",
            pin.release,
            pin.version(),
            wanted.name()
        ),
    }
    fetch_newest(apt, wanted, offered)
}

/// `Ok(Err)`: the archive does not have it any more. `Err`: it has it, and with other bytes, or it is no kernel for us.
fn fetch_pinned(apt: &Apt, wanted: Wanted, pin: &Pin) -> Result<Result<()>> {
    let folder = emptied(wanted)?;
    let name = |part: &str, version: &str| format!("{part}{}={version}", pin.release);
    let names: Vec<_> = pin.packages.iter().map(|p| name(p.part, p.version)).collect();
    if let Err(gone) = apt.download(&names, &folder) {
        return Ok(Err(gone));
    }
    let mut there: Vec<String> = fs::read_dir(folder.join(PACKAGES))?
        .map(|entry| digest(&entry?.path()))
        .collect::<Result<_>>()?;
    let mut expected: Vec<&str> = pin.packages.iter().map(|package| package.sha256).collect();
    there.sort();
    expected.sort_unstable();
    if there != expected {
        bail!(
            "{} from Debian's archive {}, not {} as in xtask/src/kernel_test/pinned.rs",
            names.join(" and "),
            there.join(", "),
            expected.join(", ")
        );
    }
    unpack(wanted, folder, pin.release).map(Ok)
}

/// SHA-256 of a file, in hexadecimal digits.
fn digest(file: &Path) -> Result<String> {
    let said = captured(Command::new("sha256sum").arg("--binary").arg(file))?;
    // A backslash stands before it where the name has odd characters.
    let digest = said.split_whitespace().next().context("no digest")?;
    Ok(digest.trim_start_matches('\\').to_owned())
}

fn fetch_newest(apt: &Apt, wanted: Wanted, offered: &[String]) -> Result<()> {
    let releases = releases(wanted, offered);
    if releases.is_empty() && wanted == Wanted::Rekey {
        println!(
            "setup: SKIPPED: Debian's archive offers no kernel that can change keys (6.14 or newer)"
        );
        return Ok(());
    }
    let mut reasons = Vec::new();
    // The newest may be on the list and not, or no longer, in the archive.
    for release in releases.iter().take(RELEASES_TRIED_MAX) {
        println!("setup: fetching Linux {release} ({})", wanted.name());
        let fetched = emptied(wanted).and_then(|folder| {
            apt.download(&packages(release, offered), &folder)?;
            unpack(wanted, folder, release)
        });
        match fetched {
            Ok(()) => return Ok(()),
            Err(error) => reasons.push(format!("{error:#}")),
        }
    }
    bail!("no kernel {} from Debian's archive: {}", wanted.name(), reasons.join("\n"))
}

const RELEASES_TRIED_MAX: usize = 3;
/// Written when everything else is: holds the release, and the version that was pinned.
const STAMP: &str = "release";
/// Where packages are before they are unpacked.
const PACKAGES: &str = "packages";

fn home() -> PathBuf {
    crate::target_dir().join("kernels")
}

/// Releases with a cloud image, newest first.
fn releases(wanted: Wanted, offered: &[String]) -> Vec<String> {
    let release = |name: &String| name.strip_prefix("linux-image-").map(str::to_owned);
    let mut releases: Vec<String> =
        offered.iter().filter_map(release).filter(|release| wanted.is(release)).collect();
    releases.sort_by_key(|release| std::cmp::Reverse(numbers(release)));
    releases
}

/// What holds the image and the modules of a release: one package up to 6.18, two or three of them later.
fn packages(release: &str, offered: &[String]) -> Vec<String> {
    let parts: Vec<String> = ["linux-binary-", "linux-modules-"]
        .iter()
        .map(|prefix| format!("{prefix}{release}"))
        .filter(|name| offered.contains(name))
        .collect();
    if parts.len() == 2 {
        return parts;
    }
    [vec![format!("linux-image-{release}")], parts].concat()
}

/// All the numbers in a text: versions compare by them.
fn numbers(text: &str) -> Vec<u64> {
    text.split(|c: char| !c.is_ascii_digit()).filter_map(|digits| digits.parse().ok()).collect()
}

/// A kernel's folder, with nothing in it but one for packages.
fn emptied(wanted: Wanted) -> Result<PathBuf> {
    let folder = home().join(wanted.name());
    if folder.exists() {
        fs::remove_dir_all(&folder)
            .with_context(|| format!("cannot empty {}", folder.display()))?;
    }
    let downloads = folder.join(PACKAGES);
    fs::create_dir_all(&downloads)
        .with_context(|| format!("cannot make {}", downloads.display()))?;
    Ok(folder)
}

/// Unpacks the packages in a kernel's folder.
fn unpack(wanted: Wanted, folder: PathBuf, release: &str) -> Result<()> {
    let (downloads, root) = (folder.join(PACKAGES), folder.join("root"));
    for entry in fs::read_dir(&downloads)? {
        captured(Command::new("dpkg-deb").arg("--extract").arg(entry?.path()).arg(&root))?;
    }
    drop(fs::remove_dir_all(&downloads));
    let kernel = unpacked(wanted, folder, release.to_owned())?;
    modules::prepare(&kernel)?;
    let stamp = kernel.folder.join(STAMP);
    fs::write(&stamp, format!("{release} {}\n", pinned::of(wanted).version()))
        .with_context(|| format!("cannot write {}", stamp.display()))
}

/// Debian moved both from `/` to `/usr` with 7.0.
fn unpacked(wanted: Wanted, folder: PathBuf, release: String) -> Result<Kernel> {
    let root = folder.join("root");
    let first = |places: [String; 2]| {
        let mut paths = places.iter().map(|place| root.join(place));
        let found = paths.find(|path| path.exists());
        found.with_context(|| format!("neither {} in Linux {release}", places.join(" nor ")))
    };
    let image =
        first([format!("boot/vmlinuz-{release}"), format!("usr/lib/modules/{release}/vmlinuz")])?;
    let modules = first([
        format!("lib/modules/{release}/kernel"),
        format!("usr/lib/modules/{release}/kernel"),
    ])?;
    let modules = modules.parent().context("modules without a folder")?.to_owned();
    Ok(Kernel { wanted, release, folder, image, modules })
}

/// apt with a configuration, lists and a cache of its own.
struct Apt {
    configuration: PathBuf,
}

/// Where the kernels are: 6.1 and 6.12 with Debian 12's updates, the newer in backports or unstable.
const SOURCES: &[(&str, &str)] = &[
    ("debian", "bookworm"),
    ("debian-security", "bookworm-security"),
    ("debian", "bookworm-backports"),
    ("debian", "trixie-backports"),
    ("debian", "sid"),
];
/// Of Debian's package debian-archive-keyring.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

impl Apt {
    fn new() -> Result<Self> {
        if !Path::new(KEYRING).exists() {
            bail!(
                "kernels come from Debian's archive, whose keys are not here ({KEYRING}); run this on Debian, or \
                 with its packages apt and debian-archive-keyring"
            );
        }
        let folder = home().join("apt");
        for below in ["lists/partial", "cache/archives/partial"] {
            let path = folder.join(below);
            fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        }
        let source = |(part, suite): &(&str, &str)| {
            format!(
                "deb [arch=amd64 signed-by={KEYRING}] http://deb.debian.org/{part} {suite} main\n"
            )
        };
        let sources: String = SOURCES.iter().map(source).collect();
        fs::write(folder.join("sources.list"), sources)?;
        let here = folder.display();
        let configuration = folder.join("apt.conf");
        fs::write(
            &configuration,
            format!(
                "Dir::State::lists \"{here}/lists\";\nDir::Cache \"{here}/cache\";\n\
                 Dir::Etc::sourcelist \"{here}/sources.list\";\nDir::Etc::sourceparts \"/dev/null\";\n\
                 Dir::Etc::preferences \"/dev/null\";\nDir::Etc::preferencesparts \"/dev/null\";\n\
                 Acquire::Languages \"none\";\nAcquire::IndexTargets::deb::DEP-11::DefaultEnabled \"false\";\n\
                 APT::Architecture \"amd64\";\nAPT::Sandbox::User \"root\";\n"
            ),
        )?;
        Ok(Self { configuration })
    }

    fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
        command.env("APT_CONFIG", &self.configuration).args(arguments);
        command
    }

    fn run(&self, program: &str, arguments: &[&str]) -> Result<String> {
        captured(&mut self.command(program, arguments))
    }

    /// Fetches packages into a kernel's folder.
    fn download(&self, packages: &[String], folder: &Path) -> Result<()> {
        let mut words = vec!["download", "-qq"];
        words.extend(packages.iter().map(String::as_str));
        captured(self.command("apt-get", &words).current_dir(folder.join(PACKAGES))).map(drop)
    }

    /// Names of the packages that may hold a kernel.
    fn offered(&self) -> Result<Vec<String>> {
        const NAMES: &str = "^linux-(image|binary|modules)-[0-9].*-cloud-amd64$";
        let found = self.run("apt-cache", &["search", "--names-only", NAMES])?;
        let names = found.lines().filter_map(|line| line.split_whitespace().next());
        Ok(names.map(str::to_owned).collect())
    }
}

/// Insists on success; gives what the program said.
pub(super) fn captured(command: &mut Command) -> Result<String> {
    let (success, said) = process::output(command)?;
    if !success {
        bail!("{} failed:\n{}", process::line(command), said.trim_end());
    }
    Ok(said)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offered() -> Vec<String> {
        [
            "linux-image-6.1.0-9-cloud-amd64",
            "linux-image-6.1.0-56-cloud-amd64",
            "linux-image-6.12.107+deb12-cloud-amd64",
            "linux-image-6.12.9+deb12-cloud-amd64",
            "linux-image-6.18.15+deb13-cloud-amd64",
            "linux-image-6.19.6+deb13-cloud-amd64",
            "linux-binary-6.19.6+deb13-cloud-amd64",
            "linux-image-7.3.4+deb13-cloud-amd64",
            "linux-binary-7.3.4+deb13-cloud-amd64",
            "linux-modules-7.3.4+deb13-cloud-amd64",
        ]
        .map(str::to_owned)
        .to_vec()
    }

    #[test]
    fn the_newest_comes_first() {
        fn check(wanted: Wanted, expect: &[&str]) {
            assert_eq!(releases(wanted, &offered()), expect);
        }
        check(Wanted::V6_1, &["6.1.0-56-cloud-amd64", "6.1.0-9-cloud-amd64"]);
        check(Wanted::V6_12, &["6.12.107+deb12-cloud-amd64", "6.12.9+deb12-cloud-amd64"]);
        check(Wanted::V6_18, &["6.18.15+deb13-cloud-amd64"]);
        check(
            Wanted::Rekey,
            &["7.3.4+deb13-cloud-amd64", "6.19.6+deb13-cloud-amd64", "6.18.15+deb13-cloud-amd64"],
        );
    }

    #[test]
    fn what_was_fetched_for_another_pin_is_fetched_again() {
        let pin = Pin {
            release: "6.1.0-9",
            packages: &[pinned::Package { part: "linux-image-", version: "6.1.9-1", sha256: "" }],
        };
        let check = |stamp: &str, expect: Option<&str>| assert_eq!(stamped(stamp, &pin), expect);
        check("6.1.0-9", Some("6.1.0-9"));
        check("6.1.0-8", None);
        check("6.1.0-9 6.1.9-1\n", Some("6.1.0-9"));
        // In its stead, since the archive had it no more.
        check("6.1.0-11 6.1.9-1\n", Some("6.1.0-11"));
        check("6.1.0-9 6.1.8-1\n", None);
        check("", None);
    }

    #[test]
    fn a_kernel_may_be_in_several_packages() {
        fn check(release: &str, expect: &[&str]) {
            assert_eq!(packages(release, &offered()), expect);
        }
        check("6.1.0-9-cloud-amd64", &["linux-image-6.1.0-9-cloud-amd64"]);
        check(
            "6.19.6+deb13-cloud-amd64",
            &["linux-image-6.19.6+deb13-cloud-amd64", "linux-binary-6.19.6+deb13-cloud-amd64"],
        );
        check(
            "7.3.4+deb13-cloud-amd64",
            &["linux-binary-7.3.4+deb13-cloud-amd64", "linux-modules-7.3.4+deb13-cloud-amd64"],
        );
    }
}
